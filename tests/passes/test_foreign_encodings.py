"""Whose values a file speaks of: those of the trained factors, or those that a pack holds.

Kinds whose s differs from rank to rank, whose B carries a magnitude, or whose factors are computed
hold other values than a graph with the trained factors. A file of such a graph is not taken for
them; one that was made on our graph always is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.passes.kind_builds import Built, activation, build_kinds, ends, weight
from tests.passes.test_vector_encodings import Q, same_grid, tensors
from tests.sample import Document

NAMES = tensors(Q)
PATH = NAMES["y"].removesuffix("/MatMul_output_0")
# The names of a graph with trained factors: y is the Add, h what the base calls y.
FOREIGN = {
    f"base_model.{Q}.lora_A.weight": weight([0.01, 0.02, 0.03, 0.04]),
    f"base_model.{Q}.lora_B.weight": weight([0.05] * 16),
    f"{PATH}/lora_A.0/MatMul_output_0": activation(-3.0, 4.0),
    f"{PATH}/mul_scale/Mul_output_0": activation(-5.0, 6.0),
    f"{PATH}/lora_B.0/MatMul_output_0": activation(-7.0, 8.0),
}
A_GRID = FOREIGN[f"{PATH}/lora_A.0/MatMul_output_0"]


def computed(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> list[float]:
    """Per column: max(-min / 128, max / 127) in float32, that of the largest for zeros."""
    exact = np.maximum(-values.min(axis=0) / 128.0, values.max(axis=0) / 127.0).astype(np.float64)
    exact[exact == 0] = exact.max()
    return [float(scale) for scale in exact.astype(np.float32)]


def test_trained_factors_are_taken_from_a_foreign_file(tmp_path: Path) -> None:
    built = build_kinds(tmp_path, "llama", {"plain": ("lora_plain",)}, {"plain": FOREIGN})
    found = built.overrides("plain")
    for (name, entry), role in zip(FOREIGN.items(), "ABaml", strict=True):
        assert same_grid(found[NAMES[role]], entry), name
    assert NAMES["B"] not in built.rules("plain").get("encodings/computed-weight", ())


@pytest.mark.parametrize("kind", ["adalora_linear", "vera_saved", "delora_linear", "lora_dora"])
def test_other_factors_are_computed_from_their_values(kind: str, tmp_path: Path) -> None:
    """2**-23: the quotient in float64 and in float32, rounded to float32 either way."""
    built = build_kinds(tmp_path, "llama", {"on": (kind,)}, {"on": FOREIGN})
    found, weights = built.overrides("on"), built.weights("on")
    for role in "AB":
        assert found[NAMES[role]]["scale"] == pytest.approx(
            computed(weights[NAMES[role]]), rel=2.0**-23
        )
    told = built.rules("on")
    assert {NAMES["A"], NAMES["B"]} <= told["encodings/computed-weight"]
    assert same_grid(found[NAMES["a"]], A_GRID)
    assert NAMES["m"] in told["encodings/computed-activation"]


def test_m_of_scales_that_differ_follows_from_a(tmp_path: Path) -> None:
    """s is the adapter's scale for every rank, whatever is folded into B: m = s * a."""
    built = build_kinds(tmp_path, "llama", {"on": ("adalora_linear",)}, {"on": FOREIGN})
    s = float(built.weights("on")["lora_alpha.expansion"].max())
    low, high = ends(A_GRID)
    # s is stored in float32
    assert ends(built.overrides("on")[NAMES["m"]]) == pytest.approx(
        (s * low, s * high), rel=2.0**-23
    )
    assert same_grid(built.overrides("on")[NAMES["l"]], FOREIGN[f"{PATH}/lora_B.0/MatMul_output_0"])


def test_l_in_front_of_a_magnitude_is_not_ours(tmp_path: Path) -> None:
    """DoRA's B carries g: what a graph of the trained B says of l is named as missing."""
    built = build_kinds(tmp_path, "llama", {"on": ("lora_dora",)}, {"on": FOREIGN})
    assert NAMES["l"] in built.rules("on")["encodings/missing-activation"]
    assert NAMES["l"] not in built.overrides("on")


def test_a_computed_factor_has_the_structure_that_the_file_gives_it(tmp_path: Path) -> None:
    """Per tensor and 16 bits, as the plain adapter beside it, so that both can share a graph."""
    per_tensor = {
        **FOREIGN,
        f"base_model.{Q}.lora_A.weight": weight([0.0002], bits=16),
        f"base_model.{Q}.lora_B.weight": weight([0.0001], bits=16),
    }
    use_cases = {"plain": ("lora_plain",), "on": ("adalora_linear",)}
    built = build_kinds(tmp_path, "llama", use_cases, dict.fromkeys(use_cases, per_tensor))
    entry = built.overrides("on")[NAMES["B"]]
    assert (entry["bw"], entry["enc_type"]) == (16, "PER_TENSOR")
    largest = np.abs(built.weights("on")[NAMES["B"]]).max()
    assert largest <= 32768 * entry["scale"][0] * (1 + 2.0**-23)


def test_an_adapter_whose_scale_is_per_rank_beside_a_plain_one(tmp_path: Path) -> None:
    """Two adapters on one branch: B is neither the one's nor the other's."""
    built = build_kinds(
        tmp_path, "llama", {"both": ("lora_plain", "adalora_linear")}, {"both": FOREIGN}
    )
    found, weights = built.overrides("both"), built.weights("both")
    assert found[NAMES["B"]]["scale"] == pytest.approx(computed(weights[NAMES["B"]]), rel=2.0**-23)
    low, high = ends(A_GRID)
    s = weights["lora_alpha.expansion"].max(axis=1)
    assert ends(found[NAMES["m"]])[1] >= high * float(s.max()) * (1 - 2.0**-23)
    assert ends(found[NAMES["m"]])[0] <= low * float(s.max()) * (1 - 2.0**-23)


@pytest.mark.parametrize("order", [("lora_plain", "lora_dora"), ("lora_dora", "lora_plain")])
def test_adapters_that_act_in_order(order: tuple[str, ...], tmp_path: Path) -> None:
    """Whichever comes first, B holds a g, and l is behind it."""
    built = build_kinds(tmp_path, "llama", {"on": order}, {"on": FOREIGN}, stacking="in-order")
    found, weights = built.overrides("on"), built.weights("on")
    assert found[NAMES["B"]]["scale"] == pytest.approx(computed(weights[NAMES["B"]]), rel=2.0**-23)
    assert NAMES["l"] in built.rules("on")["encodings/missing-activation"]


def on_our_graph(built: Built, use_case: str) -> dict[str, Document]:
    """A file that names every tensor of the graph, each with a grid that nothing would compute."""
    known = built.base()
    found: dict[str, Document] = {}
    for number, name in enumerate(sorted(known)):
        entry = known[name]
        factor = 1.25 + number / 1000
        scales = [scale * factor for scale in entry["scale"]]
        found[name] = {k: v for k, v in entry.items() if k != "name"} | {"scale": scales}
    for name in sorted(built.added() - set(known)):
        if "lora" in name:
            found[name] = activation(-2.0 - len(name) / 100, 3.0)
    return found


@pytest.mark.parametrize(
    "kind",
    ["lora_plain", "lora_patterns", "lora_dora", "adalora_linear", "ia3_feedforward", "lily"],
)
def test_a_file_of_our_graph_is_taken_as_it_is(kind: str, tmp_path: Path) -> None:
    """Everything that may change but E and s, which alpha's fixed grid and the scales decide."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    use_cases = {"on": (kind,)}
    first = build_kinds(tmp_path / "first", "llama", use_cases)
    given = on_our_graph(first, "on")
    built = build_kinds(
        tmp_path / "second", "llama", use_cases, {"on": given}, fixed_conflict="base"
    )
    found, listed = built.overrides("on"), built.listed("on")
    ours = {name for name in listed if "alpha" not in name}
    assert len(ours) >= 6
    for name in ours:
        assert same_grid(found[name], given[name]), name
    rules = {finding.rule for finding in built.findings if finding.where.use_case == "on"}
    assert rules <= {
        "encodings/fixed-tensor-differs",
        "encodings/weight-clips",
        "encodings/alpha-differs",
    }


def test_a_file_of_our_graph_may_have_fewer_ranks(tmp_path: Path) -> None:
    """4 ranks alone, more beside a larger adapter: what A has moves, the rest is filled."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    first = build_kinds(tmp_path / "first", "llama", {"on": ("adalora_linear",)})
    given = {name: e for name, e in on_our_graph(first, "on").items() if "alpha" not in name}
    use_cases = {"on": ("adalora_linear",), "large": ("lily",)}
    built = build_kinds(
        tmp_path / "second", "llama", use_cases, {"on": given}, fixed_conflict="base"
    )
    found, scales = built.overrides("on"), given[NAMES["A"]]["scale"]
    rest = len(found[NAMES["A"]]["scale"]) - len(scales)
    assert rest > 0
    assert found[NAMES["A"]]["scale"] == scales + [max(scales)] * rest
    for role in "Baml":
        assert same_grid(found[NAMES[role]], given[NAMES[role]])
