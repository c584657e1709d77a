"""The pass contract: conditions in between, truthful flags, and a pipeline of one's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest

from lora_quant.api import build
from lora_quant.config.lora_config import read_lora_config
from lora_quant.config.options import BuildOptions
from lora_quant.errors import PluginError
from lora_quant.findings import Finding, Severity
from lora_quant.graph.base.base_graph import open_base
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.contract import Condition, Pass, PassResult
from lora_quant.passes.runner import PIPELINE, default_passes, run_passes
from tests.sample import CONFIG, SAMPLE

UNTIL_EMIT = PIPELINE[: PIPELINE.index("emit-packs")]


def start(**options: object) -> Compilation:
    return Compilation(
        config=read_lora_config(CONFIG),
        options=replace(BuildOptions(), **options),  # type: ignore[arg-type]
        base=open_base(SAMPLE / "model" / "model.onnx"),
        config_file=CONFIG,
    )


@dataclass(frozen=True)
class Remark:
    """Inserted into the pipeline; changes nothing but the findings."""

    text: str = "seen"
    name: ClassVar[str] = "remark"
    requires: ClassVar[tuple[Condition, ...]] = ()
    ensures: ClassVar[tuple[Condition, ...]] = ()

    def run(self, compilation: Compilation) -> PassResult:
        finding = Finding("test/remark", Severity.NOTE, self.text)
        return PassResult(compilation.with_findings(finding), changed=True)


@dataclass(frozen=True)
class Forgetful:
    """Promises what it takes away."""

    name: ClassVar[str] = "forgetful"
    requires: ClassVar[tuple[Condition, ...]] = ()
    ensures: ClassVar[tuple[Condition, ...]] = default_passes(["allocate-slots"])[0].ensures

    def run(self, compilation: Compilation) -> PassResult:
        return PassResult(replace(compilation, slots=None), changed=True)


def test_names_of_the_pipeline_are_those_of_its_passes() -> None:
    passes = default_passes()
    assert tuple(step.name for step in passes) == PIPELINE
    assert all(isinstance(step, Pass) for step in passes)


def test_every_pass_tells_whether_it_changed_anything() -> None:
    """The first run changes the state, the second run of the same pass does not."""
    state = start()
    for step in default_passes(UNTIL_EMIT):
        first = step.run(state)
        # The sample's use cases share one graph, and plain LoRA needs nothing of the base.
        idle = step.name in ("read-exported", "lower-with-base")
        assert first.changed != idle, step.name
        second = step.run(first.compilation)
        assert not second.changed, step.name
        assert second.compilation.findings == first.compilation.findings
        state = first.compilation


def test_a_changed_option_changes_the_result() -> None:
    state = run_passes(start(), default_passes(UNTIL_EMIT[:-1]))
    (select,) = default_passes(["select-updatable"])
    other = select.run(replace(state, options=BuildOptions(mode="none")))
    assert other.changed
    assert other.compilation.updatable is not None
    assert other.compilation.updatable.encodings == frozenset()


@pytest.mark.parametrize(
    ("names", "step", "condition", "reason"),
    [
        (["resolve-attach-points"], "resolve-attach-points", "adapters are open", "no adapter was"),
        (
            ["lower-adapters", "build-branches"],
            "build-branches",
            "every module has",
            "modules were",
        ),
        (
            ["lower-adapters", "select-updatable"],
            "select-updatable",
            "every attach point",
            "no bra",
        ),
        ([*UNTIL_EMIT[:6], "merge-encodings"], "merge-encodings", "updatable tensors", "the quant"),
        ([*UNTIL_EMIT[:7], "emit-packs"], "emit-packs", "encodings are merged", "encodings were n"),
    ],
)
def test_a_wrong_order_is_reported(
    names: list[str], step: str, condition: str, reason: str
) -> None:
    with pytest.raises(PluginError) as caught:
        run_passes(start(), default_passes(names))
    assert f"pass {step!r} requires '{condition}" in caught.value.message
    assert f"which does not hold: {reason}" in caught.value.message
    assert caught.value.hint == ("run the passes in the order of lora_quant.passes.runner.PIPELINE")


def test_a_broken_promise_is_reported() -> None:
    passes: list[Pass] = [*default_passes(UNTIL_EMIT[:3]), Forgetful()]
    with pytest.raises(PluginError, match="pass 'forgetful' ensures 'slots fit the max rank'") as e:
        run_passes(start(), passes)
    assert e.value.hint == "the pass is defective"
    assert run_passes(start(), passes, check_conditions=False).slots is None


def test_a_pass_of_one_s_own(tmp_path: Path) -> None:
    """Inserted between two others; its finding reaches the result and the manifest."""
    passes = default_passes()
    passes.insert(4, Remark("between"))
    result = build(CONFIG, tmp_path / "out", passes=passes)
    assert [(f.rule, f.message) for f in result.findings] == [("test/remark", "between")]
    assert [f.message for f in result.manifest.findings] == ["between"]


def test_check_stages_can_be_turned_off(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Picky(Remark):
        name: ClassVar[str] = "picky"
        requires: ClassVar[tuple[Condition, ...]] = (Condition("never", lambda _: "never true"),)

    passes: list[Pass] = [Picky(), *default_passes()]
    with pytest.raises(PluginError, match="'picky' requires 'never', which does not hold: never t"):
        build(CONFIG, tmp_path / "out", passes=passes)
    assert list(tmp_path.iterdir()) == []
    build(CONFIG, tmp_path / "out", BuildOptions(check_stages=False), passes=passes)


def test_progress_tells_every_pass() -> None:
    told: list[tuple[str, int, int]] = []
    state = replace(start(), progress=lambda *what: told.append(what))
    run_passes(state, default_passes(UNTIL_EMIT))
    steps = [(what, done) for what, done, total in told if total == len(UNTIL_EMIT)]
    assert [s for s in steps if s[0] in UNTIL_EMIT] == [(n, i) for i, n in enumerate(UNTIL_EMIT)]
    assert told[-1] == ("done", len(UNTIL_EMIT), len(UNTIL_EMIT))
    assert "encodings of both" in {what for what, _, _ in told}
