"""Every reader is given damaged files; what it may do with them is in tests/fuzz/outcome.py.

The ordinary run gives each target a few inputs, so that a target that no longer works is noticed;
`make fuzz` and the slow test look for defects.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.bytes_mutator import MOST_BYTES, mutate_bytes
from tests.fuzz.message_mutator import delimited, mutate_message, varint
from tests.fuzz.outcome import UnfitTextError, settle
from tests.fuzz.processes import in_process
from tests.fuzz.runner import run_inputs
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS
from tests.fuzz.tree_mutator import Pairs, parse_tree, tree_text

_FEW = 12
_FEWEST = 3
_SECONDS = 150.0


@pytest.mark.parametrize("name", TARGETS)
def test_a_reader_gives_a_value_or_an_error_of_the_tree(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    few = _FEWEST if name.startswith("validate") else _FEW
    tally = run_inputs(target, tmp_path, iter(range(few)), seed=20)
    assert tally.inputs == few
    assert not tally.kinds, tally.defects[0].detail


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_many_inputs_cause_no_defect(name: str) -> None:
    tally = in_process(TARGETS[name], seed=21, inputs=None, seconds=_SECONDS / len(TARGETS))
    assert tally.inputs > 20
    assert not tally.kinds, tally.defects[0].detail


def test_one_number_and_seed_give_one_input(tmp_path: Path) -> None:
    for name in ("yaml", "graph", "safetensors", "torch-zip"):
        target = TARGETS[name]
        seeds = target.seeds(tmp_path)
        first = [target.input(seeds, 3, index) for index in range(20)]
        assert first == [target.input(seeds, 3, index) for index in range(20)]
        assert first != [target.input(seeds, 4, index) for index in range(20)]
        assert len(set(first)) > 10


def _failing(run: object) -> Target:
    return Target("failing", lambda _: [b"seed"], run, (mutate_bytes,))  # type: ignore[arg-type]


def test_what_a_reader_may_not_do_is_a_defect(tmp_path: Path) -> None:
    def key_error(data: bytes, folder: Path) -> None:
        raise KeyError(data)

    def endless(data: bytes, folder: Path) -> None:
        raise UnfitTextError("too long")

    for run, kind in ((key_error, "KeyError at"), (endless, "UnfitTextError at")):
        tally = run_inputs(_failing(run), tmp_path, iter(range(9)), seed=1)
        assert tally.inputs == 9
        ((found, count),) = tally.kinds.items()
        assert found.startswith(kind)
        assert count == 9
        assert 1 <= len(tally.defects) < 9


def test_a_reader_that_takes_too_long_is_a_defect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(data: bytes, folder: Path) -> None:
        while True:
            json.loads("[" + "1," * 1000 + "1]")

    monkeypatch.setattr("tests.fuzz.runner.SECONDS", 0.05)
    tally = run_inputs(_failing(slow), tmp_path, iter([0]), seed=1)
    assert [kind.split()[0] for kind in tally.kinds] == ["TooSlowError"]


def test_an_error_that_no_report_can_carry_is_a_defect() -> None:
    from lora_quant.errors import ConfigError

    def refused(text: str) -> None:
        raise ConfigError(text)

    settle(lambda: refused("fine"))
    with pytest.raises(UnfitTextError, match="no UTF-8"):
        settle(lambda: refused("\ud800"))


def test_trees_keep_repeated_keys() -> None:
    tree = parse_tree('{"a": 1, "a": [true, null, {"b": "\\u00e9"}]}')
    assert isinstance(tree, Pairs)
    assert tree_text(tree) == '{"a": 1, "a": [true, null, {"b": "\u00e9"}]}'


def test_messages_are_put_together_with_lengths_that_fit() -> None:
    inner = delimited(1, b"abc") + varint(3 << 3) + varint(300)
    message = delimited(7, inner) + varint(1 << 3) + varint(8)
    found = {mutate_message(message, [], Random(number)) for number in range(300)}
    assert message in found  # steps such as a change of order leave some messages as they are
    shorter = delimited(7, varint(3 << 3) + varint(300))  # a field is lost, the length fits
    assert any(shorter in one for one in found)


def test_inputs_have_a_bound() -> None:
    random = Random(0)
    data = bytes(MOST_BYTES)
    assert all(len(mutate_bytes(data, [data], random)) <= MOST_BYTES for _ in range(10))
