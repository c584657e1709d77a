"""Names of use cases with graphs of their own are told by structure, not by spelling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.adapters.builders import write
from tests.passes.exported_builds import (
    FACTOR,
    OURS,
    OUTPUTS,
    H,
    Own,
    build_exported,
    build_graphs,
    factors,
)
from tests.passes.exported_cases import (
    A_TONE,
    CHAINED,
    JOINED,
    MIX,
    RANKS,
    SHARED,
    TONE,
    all_rules,
    both,
    close,
    grids,
)
from tests.passes.kind_builds import activation, ends, weight
from tests.sample import ROOT, Document


def test_only_structure_tells_names(tmp_path: Path) -> None:
    """A name in the spelling of a branch that the graph does not have stays unknown."""
    files = {**SHARED, "/q/lora_A/MatMul_output_0": activation(-1.0, 1.0)}
    built = both(tmp_path, Own(JOINED), files)
    (told,) = (f for f in built.findings if f.rule == "encodings/unknown-tensor")
    assert "'/q/lora_A/MatMul_output_0'" in told.message
    assert grids(built.overrides("both")) == {role: SHARED[f"1.{role}"] for role in OURS}


def test_h_and_y_are_told_apart(tmp_path: Path) -> None:
    """What the base calls y is h in the use case's graph, and the last sum is y."""
    files = {**CHAINED, H: activation(-1.0, 1.0), "2.y": activation(-8.0, 8.0)}
    found = both(tmp_path, Own(), files, mode="all").overrides("both")
    own = next(name for name in found if name.startswith(H) and name != H)
    assert close(found[own], -1.0, 1.0)
    assert close(found[H], -8.0, 8.0)


@pytest.mark.parametrize("has_sum", [False, True])
def test_a_cast_behind_the_sum_is_the_sum(has_sum: bool, tmp_path: Path) -> None:
    """PEFT casts the sum to the type that it has; the grid of the sum itself comes first."""
    files = {"c": activation(-7.0, 7.0), **SHARED, "1.y": activation(-8.0, 8.0)}
    if not has_sum:
        del files["1.y"]
    use_cases = {"both": (Own(JOINED, cast_behind=True), MIX)}
    built = build_exported(
        tmp_path, use_cases, {"both": files}, RANKS, lists={"both": [*files]}, mode="all"
    )
    end = 8.0 if has_sum else 7.0
    assert close(built.overrides("both")[H], -end, end)
    assert not {"encodings/unknown-tensor", "updatable/unknown-tensor"} & all_rules(built)


def test_what_nothing_reads_is_known(tmp_path: Path) -> None:
    """AIMET leaves the Constants whose readers it gave an initializer, and their encodings."""
    files = {**SHARED, "unread": activation(0.0, 2.0)}
    built = both(tmp_path, Own(JOINED, unread=True), files)
    assert grids(built.overrides("both")) == {role: SHARED[f"1.{role}"] for role in OURS}
    assert "encodings/unknown-tensor" not in all_rules(built)


@pytest.mark.parametrize("version", ["1.0.0", "2.0.0"])
def test_a_factor_goes_by_the_name_that_its_node_reads(version: str, tmp_path: Path) -> None:
    """Stored [out, in], read through a Transpose as [in, out]: 2.0.0 tells the channels' axis."""
    files = {**SHARED, "1.A.T_output_0": SHARED["1.A"], "1.B.T_output_0": SHARED["1.B"]}
    del files["1.A"], files["1.B"]
    given: Document = files
    if version == "2.0.0":
        given = {"version": "2.0.0", "encodings": [_in_2_0_0(n, e) for n, e in files.items()]}
    built = both(tmp_path, Own(JOINED, stored_out_in=True), given, encodings_version="1.0.0")
    assert grids(built.overrides("both")) == {role: SHARED[f"1.{role}"] for role in OURS}
    assert "encodings/unknown-tensor" not in all_rules(built)


def _in_2_0_0(name: str, entry: Document) -> Document:
    if entry["enc_type"] == "PER_CHANNEL":
        return {"name": name, "output_dtype": "int8", "axis": 1, "y_scale": entry["scale"]}
    (scale,), (offset,) = entry["scale"], entry["offset"]
    return {"name": name, "output_dtype": "uint16", "y_scale": scale, "y_zero_point": -offset}


@pytest.mark.parametrize("is_behind", [False, True])
def test_a_branch_before_the_bias(is_behind: bool, tmp_path: Path) -> None:
    """Our sum lies behind the bias: then the exported one in front of it is none of ours."""
    files = {**SHARED, "1.A": weight(A_TONE), "1.y": activation(-6.0, 6.0)}
    biased = "/q/Add_output_0"
    files |= {H: activation(-1.0, 1.0), biased: activation(-8.0, 8.0)}
    built = both(tmp_path, Own(bias_behind=is_behind), files, mix=TONE, bias=True, mode="all")
    found = built.overrides("both")
    own = next(name for name in found if name.startswith(biased) and name != biased)
    assert close(found[H], -1.0, 1.0)
    if is_behind:
        assert close(found[biased], -8.0, 8.0)
        assert ends(found[own]) == ends(built.base()[own])
    else:
        assert close(found[biased], -6.0, 6.0)
        assert close(found[own], -8.0, 8.0)


@pytest.mark.parametrize(("high", "rules"), [(1.0, set()), (4.0, {"encodings/alpha-differs"})])
def test_strengths_that_mean_the_same_are_ours(
    high: float, rules: set[str], tmp_path: Path
) -> None:
    """A matrix holds lora_alpha / r, so that the input is the strength, as ours is."""
    files = {**SHARED, "strengths": activation(0.0, high), "1.s": activation(0.0, 2.0)}
    built = both(tmp_path, Own(JOINED, strengths="matrix"), files)
    assert all_rules(built) - {"exported/rank-order-assumed"} == rules
    # The step is a double, 1 / 65535 at the finest: off by half of its last place, 65535 times.
    assert ends(built.base()["lora_alpha"]) == pytest.approx((0.0, 1.0), abs=2.0**-53)


def test_strengths_that_carry_more_are_left_out(tmp_path: Path) -> None:
    """An input that is the whole scale goes from 0 to lora_alpha / r."""
    files = {**SHARED, "1.A": weight(A_TONE), "strengths": activation(0.0, 4.0)}
    built = both(tmp_path, Own(strengths="input"), files, mix=TONE)
    (told,) = (f for f in built.findings if f.rule == "encodings/other-strength")
    assert "'strengths'" in told.message
    assert "encodings/unknown-tensor" not in all_rules(built)


@pytest.mark.parametrize("missing", [None, "2.A", "1.l"])
def test_lists_are_in_the_names_of_the_graph(missing: str | None, tmp_path: Path) -> None:
    """One name of two that a chain has for a tensor is enough; what is computed is not expected."""
    listed = [f"{number}.{role}" for number in "12" for role in "ABaml"]
    names = [name for name in listed if name != missing]
    use_cases = {"both": (Own(), MIX)}
    built = build_exported(
        tmp_path, use_cases, {"both": CHAINED}, RANKS, lists={"both": [*names, "1.y"]}
    )
    assert not {rule for rule in all_rules(built) if rule.startswith("updatable/")}


def test_a_list_that_lacks_a_tensor_is_reported(tmp_path: Path) -> None:
    names = [f"1.{role}" for role in "ABal"]
    use_cases = {"both": (Own(JOINED), MIX)}
    built = build_exported(
        tmp_path, use_cases, {"both": SHARED}, RANKS, lists={"both": [*names, "9.x"]}
    )
    told = {f.rule: f.message for f in built.findings if f.rule.startswith("updatable/")}
    assert set(told) == {"updatable/unknown-tensor", "updatable/not-listed"}
    assert "'9.x'" in told["updatable/unknown-tensor"]
    assert repr(OURS["m"]) in told["updatable/not-listed"]


def test_a_use_case_may_stand_for_the_base(tmp_path: Path) -> None:
    """Without encodings of the base, those of its tensors in the first use case count."""
    files = {**SHARED, "q.weight": weight([0.5] * OUTPUTS), "out": activation(0.0, 9.0)}
    built = both(tmp_path, Own(JOINED), files, base_file=False)
    base = built.base()
    assert base["q.weight"]["scale"] == [0.5] * OUTPUTS
    assert close(base["out"], 0.0, 9.0)
    assert "encodings/no-base" in all_rules(built)


def test_a_peft_export_of_torch(tmp_path: Path) -> None:
    """A -> B -> Mul, a bias, and weights that the exporter numbered: no name tells a module.

    The range of every entry tells which one it is.
    """
    exports = ROOT / "tests" / "fixtures" / "exports" / "branches"
    files = {
        "base": _numbered(exports / "plain.onnx", first=1.0),
        "a": _numbered(exports / "peft.onnx", first=500.0),
    }
    graphs = {"base": (exports / "plain.onnx", {}), "a": (exports / "peft.onnx", {"a": 1.0})}
    adapters = [{"name": "a", "lora_config": str(exports / "adapter_a")}]
    built = build_graphs(tmp_path, adapters, graphs, files, mode="all", fixed_conflict="base")
    given = {tuple(entry["scale"]): name for name, entry in files["a"].items()}
    told = {n: given.get(tuple(e["scale"])) for n, e in built.overrides("a").items()}
    for module, h, y in (
        ("first", "first/base_layer/Add", "first/Add"),
        ("second", "second/base_layer/MatMul", "second/MatMul"),
        ("point", "point/base_layer/Conv", "point/Conv"),
    ):
        op = "Conv" if module == "point" else "MatMul"
        assert told[f"/{y}_output_0"] == f"/{module}/Add_output_0"
        assert told[f"/{y}_output_0_base"] == f"/{h}_output_0"
        assert told[f"/{module}/lora_A/{op}_output_0"] == f"/{module}/adapter_a/{op}_output_0"
        assert told[f"/{module}/lora_B/{op}_output_0"] == f"/{module}/Mul_output_0"
    assert told["first.lora_A.weight"] == "onnx::MatMul_47"
    assert told["first.lora_B.weight"] == "onnx::MatMul_48"
    assert told["point.lora_A.weight"] == "point.lora_A.adapter_a.weight"
    # the weights of the base have other numbers, and are fixed: the two files do not agree on them
    (differs,) = (f for f in built.findings if f.rule == "encodings/fixed-tensor-differs")
    assert "'onnx::MatMul_18', 'onnx::MatMul_19', 'point.weight'" in differs.message
    # first is behind a bias: what the base's node gives is the base's in both
    assert told["/first/MatMul_output_0"] == "/first/base_layer/MatMul_output_0"


def _numbered(path: Path, *, first: float) -> dict[str, Document]:
    """An entry for what every node with a range gives, and for weights; no two are the same."""
    model = onnx.load(str(path)).graph
    operators = ("MatMul", "Conv", "Mul", "Add", "Relu")
    names = [name for node in model.node if node.op_type in operators for name in node.output]
    found = {
        name: activation(-first - number, first + 2 * number)
        for number, name in enumerate(names, start=1)
    }
    floats = [tensor.name for tensor in model.initializer if len(tensor.dims) > 1]
    return found | {name: weight([first + n / 100]) for n, name in enumerate(floats)}


def test_a_checkpoint_may_call_the_module_otherwise(tmp_path: Path) -> None:
    """The adapter has weights of its own, of `net.q`; the graph tells that `q` is the place."""
    a, b = factors("tone", RANKS["tone"])
    tensors = {
        "base_model.model.net.q.lora_A.weight": np.ascontiguousarray(a.T),
        "base_model.model.net.q.lora_B.weight": np.ascontiguousarray(b.T),
    }
    path = write(tmp_path / "tone", tensors, r=2, lora_alpha=int(2 * FACTOR), target_modules=["q"])
    files = {**SHARED, "1.A": weight(A_TONE)}
    adapters = [{"name": "tone", "lora_config": str(path)}]
    built = both(tmp_path, Own(), files, mix=TONE, adapters=adapters)
    expected = {role: files[f"1.{role}"] for role in OURS}
    assert grids(built.overrides("both")) == expected
    assert all_rules(built) == set()
