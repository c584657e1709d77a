"""Sessions of use cases that act on some tokens only, and of such with a soft prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lora_quant.errors import ConfigError, VerificationError
from lora_quant.runtime import BASE, Session
from lora_quant.runtime.session.gates import token_gate
from tests.runtime.session_packs import DIM, INVOCATION, USE_CASES, Handmade

Array = NDArray[Any]
GATED = Handmade(gated=["tone"])
X = np.random.default_rng(3).standard_normal((2, 5, DIM)).astype(np.float32)
IDS = np.array([[7, 8, 1, 7, 8], [0, 7, 7, 8, 8]])
OPEN = np.array([[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]], np.float32)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return Session(GATED.write(tmp_path_factory.mktemp("gates") / "pack"))


def assert_as(got: Mapping[str, Array], strengths: Mapping[str, float], gate: Array | None) -> None:
    """As the formula says, to the rounding of float32 (see Handmade.bounds)."""
    bounds = GATED.bounds(X, strengths)
    for name, wanted in GATED.expected(X, strengths, gate).items():
        assert np.abs(got[name] - wanted).max() <= bounds[name], name


def reference_gate(row: Sequence[int], invocation: Sequence[int]) -> list[float]:
    """1 from the start of the last occurrence on, token by token."""
    start = len(row)
    for position in range(len(row) - len(invocation), -1, -1):
        if list(row[position : position + len(invocation)]) == list(invocation):
            start = position
            break
    return [float(position >= start) for position in range(len(row))]


@given(
    rows=st.integers(0, 9).flatmap(
        lambda width: st.lists(
            st.lists(st.integers(0, 2), min_size=width, max_size=width), min_size=1, max_size=3
        )
    ),
    invocation=st.lists(st.integers(0, 2), min_size=1, max_size=3),
)
def test_gates_open_where_the_last_invocation_starts(
    rows: list[list[int]], invocation: list[int]
) -> None:
    ids = np.array(rows, np.int64).reshape(len(rows), -1)
    wanted = [reference_gate(row, invocation) for row in rows]
    assert token_gate(ids, invocation).tolist() == wanted


def test_the_gate_of_a_use_case_comes_from_its_adapters_tokens(session: Session) -> None:
    assert INVOCATION == (7, 8)
    assert {name: gate.tolist() for name, gate in session.gate("both", IDS).items()} == {
        "tone": OPEN.tolist()
    }
    assert session.gate("legal", IDS) == {}


@pytest.mark.parametrize("use_case", ["tone", "both"])
def test_a_gated_adapter_acts_on_its_tokens_only(session: Session, use_case: str) -> None:
    strengths = USE_CASES[use_case]
    assert_as(session.run({"x": X}, use_case, gate=OPEN), strengths, OPEN)
    gates = session.gate(use_case, IDS)
    assert_as(session.run({"x": X}, use_case, gate=gates), strengths, OPEN)
    ones = np.ones((1, 1), np.bool_)
    assert_as(session.run({"x": X}, use_case, gate=ones), strengths, None)


def test_what_is_not_gated_needs_no_gate(session: Session) -> None:
    assert_as(session.run({"x": X}, "legal"), USE_CASES["legal"], None)
    assert_as(session.run({"x": X}, BASE), {}, None)


REFUSED: Mapping[str, tuple[str, Any, str]] = {
    "none": ("both", None, "acts on some tokens only, and no gate says which"),
    "for nothing": ("legal", OPEN, "the use case 'legal' has no gated adapter"),
    "of another adapter": ("both", {"legal": OPEN}, "has no gated adapter 'legal'"),
    "of other axes": ("both", OPEN[0], "the gate is float32 [5], expected finite numbers"),
    "not finite": ("both", np.full((2, 5), np.nan), "expected finite numbers"),
    "of other tokens": ("both", OPEN[:, :3], "ONNX Runtime cannot run the graph"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_gate_that_does_not_fit_is_refused(session: Session, case: str) -> None:
    use_case, gate, message = REFUSED[case]
    with pytest.raises(VerificationError, match=re.escape(message)):
        session.run({"x": X}, use_case, gate=gate)


def test_gates_fill_a_graph_of_fixed_sizes(tmp_path: Path) -> None:
    session = Session(Handmade(gated=["tone"], sizes=(2, 5)).write(tmp_path / "pack"))
    assert_as(session.run({"x": X}, "both", gate=OPEN), USE_CASES["both"], OPEN)
    assert_as(session.run({"x": X}, "both", gate=np.ones((1, 1))), USE_CASES["both"], None)
    assert_as(session.run({"x": X}, "both", gate=OPEN[:1]), USE_CASES["both"], OPEN[:1])
    assert_as(session.run({"x": X}, "legal"), USE_CASES["legal"], None)
    assert_as(session.run({"x": X}, BASE), {}, None)
    with pytest.raises(VerificationError, match=re.escape("the gate is [2, 3], expected [2, 5]")):
        session.run({"x": X}, "both", gate=OPEN[:, :3])


def test_a_gate_for_the_base_is_refused(session: Session) -> None:
    with pytest.raises(VerificationError, match="the base has no gated adapter"):
        session.run({"x": X}, BASE, gate=OPEN)


def test_a_pack_without_gates_refuses_one(tmp_path: Path) -> None:
    with (
        Session(Handmade().write(tmp_path / "pack")) as session,
        pytest.raises(VerificationError, match="so a gate would change nothing"),
    ):
        session.run({"x": X}, "both", gate=OPEN)


@pytest.mark.parametrize("ids", [IDS[0], IDS.astype(np.float32)])
def test_token_ids_that_are_none_are_refused(session: Session, ids: Array) -> None:
    with pytest.raises(VerificationError, match="expected integers"):
        session.gate("both", ids)
    with pytest.raises(ConfigError, match="no use case 'nobody'"):
        session.gate("nobody", IDS)


def test_a_soft_prompt_takes_the_place_of_the_first_tokens(tmp_path: Path) -> None:
    pack = Handmade(prompt_of="tone")
    session = Session(pack.write(tmp_path / "pack"))
    with_prompt = X.copy()
    with_prompt[:, :2] = pack.prompt
    before = X.copy()
    got = session.run({"x": X}, "tone")
    bounds = pack.bounds(with_prompt, USE_CASES["tone"])
    for name, wanted in pack.expected(with_prompt, USE_CASES["tone"]).items():
        assert np.abs(got[name] - wanted).max() <= bounds[name]
    assert np.array_equal(X, before)
    assert np.array_equal(session.run({"x": X}, BASE)["q"], session.run({"x": X}, "plain")["q"])
    with pytest.raises(VerificationError, match="leaves no room for the soft prompt"):
        session.run({"x": X[:, :2]}, "tone")
