"""Routers: m = (s * q) * a, where q comes of a, in ONNX Runtime against LiLY's definition."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest

from lora_quant.errors import GraphError
from lora_quant.graph.branching.branches import AlphaLayout, add_branches
from lora_quant.graph.branching.router import expert_columns
from lora_quant.graph.branching.updatable_weights import Role, updatable_weights
from lora_quant.graph.files.model_check import check_model_file
from lora_quant.graph.records import AttachPoint, Branch, Gate
from tests.builders import DTYPES, attention, save
from tests.graph.cases import ALPHA, RANK, SLOTS, expansion, factors, stored, strengths
from tests.graph.helpers import all_points, branch, opened, put, request, resolve, run, with_extras
from tests.graph.numerics import Array, error_bound
from tests.graph.test_gates import EXPERTS, IN, gate_values, gated_graph, one_layer


def test_a_router_needs_experts(tmp_path: Path) -> None:
    base = opened(one_layer(), tmp_path)
    points = [with_extras(p, gates={Gate.ROUTER}) for p in all_points(base)]
    with pytest.raises(GraphError, match="got 0 experts; expected at least one"):
        add_branches(
            base, points, max_rank=2, slot_count=2, alpha_name="lora_alpha", alpha_layout="slot"
        )


def test_a_router_is_neutral_for_adapters_without_one(tmp_path: Path) -> None:
    model = one_layer()
    plain_folder, routed_folder = tmp_path / "plain", tmp_path / "routed"
    plain_folder.mkdir()
    routed_folder.mkdir()
    results = []
    x = np.random.default_rng(2).normal(size=(2, 4, IN)).astype(np.float32)
    for folder, gates in ((plain_folder, set()), (routed_folder, {Gate.ROUTER})):
        after, branched = gated_graph(folder, model, gates)
        (made,) = branched.branches
        weights, feeds, _ = strengths(branched)
        results.append(run(put(after, stored(made, *factors(made, 1)) | weights), {"x": x} | feeds))
    # q is a mean of softmaxes times zero, plus one: exactly one.
    assert np.array_equal(results[0][0], results[1][0])


def routed_values(made: Branch, random: np.random.Generator) -> dict[str, Array]:
    """Router weights of a use case whose adapters have ranks 2 and 3; the first is not routed."""
    router = made.router
    assert router is not None
    parts = len(made.attach.parts)
    dtype = DTYPES[router.weight.dtype]
    weight = np.zeros(router.weight.shape, dtype)
    expand = np.zeros(router.expansion.shape, dtype)
    rest = np.ones(router.rest.shape, dtype)
    start, rank = SLOTS[1][:2]
    for part in range(parts):
        first = part * RANK + start
        columns = expert_columns(router, parts=parts, slot_count=len(SLOTS), part=part, slot=1)
        weight[first : first + rank, columns] = random.normal(size=(rank, EXPERTS)) / 4
        expand[columns, first : first + rank] = np.eye(EXPERTS)
        rest[first : first + rank] = 0
    return {
        router.weight.name: weight,
        router.expansion.name: expand,
        router.rest.name: rest,
    }


def routed_reference(
    x: Array, A: Array, B: Array, s: Array, weight: Array, first: int
) -> tuple[Array, Array, Array]:
    """LiLY by its definition for ranks `first` .. and plain LoRA for the others, in float64.

    Returns the branch, the sum of its terms' absolute values, and the largest sum of absolute
    terms among the logits.
    """
    a = x @ A.T
    own = slice(first, first + EXPERTS)
    q = np.ones((len(x), 1, A.shape[0]))
    for sequence in range(len(x)):
        logits = a[sequence][:, own] @ weight
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = raised / raised.sum(axis=1, keepdims=True)
        q[sequence, 0, own] = probabilities.mean(axis=0)
    terms = (np.abs(x) @ np.abs(A.T))[..., own] @ np.abs(weight)
    magnitude = (np.abs(x) @ np.abs(A.T) * np.abs(s) * q) @ np.abs(B.T)
    return (a * (s * q)) @ B.T, magnitude, terms.max()


@pytest.mark.parametrize("opset", [7, 13, 17, 18, 21])
def test_routers_of_every_opset(tmp_path: Path, opset: int) -> None:
    check_router(tmp_path, "float32", "slot", set(), opset)


@pytest.mark.parametrize("with_gate", [False, True], ids=["alone", "with_gate"])
@pytest.mark.parametrize("layout", ["slot", "rank"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_router_weighs_the_ranks_of_its_slot(
    tmp_path: Path, dtype: str, layout: AlphaLayout, with_gate: bool
) -> None:
    check_router(tmp_path, dtype, layout, {Gate.INPUT} if with_gate else set())


def check_router(
    folder: Path, dtype: str, layout: AlphaLayout, gates: set[Gate], opset: int = 17
) -> None:
    model = one_layer(dtype, opset=opset)
    after, branched = gated_graph(folder, model, {Gate.ROUTER, *gates}, layout=layout)
    check_model_file(save(after, folder / "branched.onnx"))
    (made,) = branched.branches
    A, B = factors(made, 1)
    weights, feeds, s = strengths(branched)
    routed = routed_values(made, np.random.default_rng(11))
    x = np.random.default_rng(2).normal(size=(2, 4, IN)).astype(DTYPES[dtype])
    if gates:
        gate_feeds, gate = gate_values(branched, 4)
        feeds |= gate_feeds
        s = s * gate
    (plain,) = run(model, {"x": x})
    (y,) = run(put(after, stored(made, A, B) | weights | routed), {"x": x} | feeds)
    assert made.router is not None
    start, rank = SLOTS[1][:2]
    columns = expert_columns(made.router, parts=1, slot_count=2, part=0, slot=1)
    weight = routed[made.router.weight.name][start : start + rank, columns]
    x64, A64, B64, W64 = (array.astype(np.float64) for array in (x, A, B, weight))
    branch_only, magnitude, logits = routed_reference(x64, A64, B64, s, W64, start)
    u = 2.0**-24 if dtype == "float32" else 2.0**-11
    # An error d of the logits changes a softmax by at most a factor exp(2 d): its own exponent by
    # d, and the sum that it is divided by. exp, the sum, the division, the mean over 4 tokens, the
    # product with the expansion and the sum with rest are roundings of their own, 2 ulp for exp.
    d = (IN + RANK) * u * logits * 1.01
    relative = float(np.exp(2 * d) - 1) + (4 + EXPERTS + 1 + 4 + 1 + 1) * u * 1.01
    bound = relative * magnitude
    bound += error_bound(magnitude, 2 + len(SLOTS) + 1 + IN + 2 + RANK, dtype)
    bound += error_bound(np.abs(plain.astype(np.float64)) + magnitude, 1, dtype)
    W = np.abs(onnx.numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64))
    bound += 2 * error_bound(np.abs(x.astype(np.float64)) @ W, IN, dtype)
    wanted = plain + branch_only
    assert np.all(np.abs(y - wanted) <= bound)
    assert np.abs(branch_only).max() > 5 * bound.max()
    # Without the router the result would be another one.
    unrouted = ((x.astype(np.float64) @ A.T.astype(np.float64)) * s) @ B.T.astype(np.float64)
    assert np.abs(unrouted - branch_only).max() > 5 * bound.max()


def test_two_routed_adapters_do_not_disturb_each_other(tmp_path: Path) -> None:
    # With the experts of both slots in one softmax, each adapter's probabilities would be halved.
    after, branched = gated_graph(tmp_path, one_layer(), {Gate.ROUTER})
    (made,) = branched.branches
    assert made.router is not None
    values = routed_values(made, np.random.default_rng(11))
    both = {name: value.copy() for name, value in values.items()}
    own = expert_columns(made.router, parts=1, slot_count=2, part=0, slot=0)
    both[made.router.weight.name][:2, own] = 3.0
    both[made.router.expansion.name][own, :2] = 1.0
    both[made.router.rest.name][:2] = 0.0
    # alpha turns the first adapter off: what its router says may not reach the second one.
    weights, _, _ = strengths(branched)
    feeds: dict[str, Array] = {
        "x": np.random.default_rng(2).normal(size=(2, 4, IN)).astype(np.float32),
        "lora_alpha": np.array([0, 1], np.float32),
    }
    filled = stored(made, *factors(made, 1)) | weights
    (one,) = run(put(after, filled | values), feeds)
    (two,) = run(put(after, filled | both), feeds)
    assert np.array_equal(one, two)


def test_columns_of_experts_cover_a_router_once(tmp_path: Path) -> None:
    base = opened(attention(layers=1, style="packed").model(), tmp_path)
    prefix = "model.layers.0.self_attn"
    requests = [
        request(f"{prefix}.{leaf}", 8, size) for leaf, size in (("v_proj", 4), ("q_proj", 8))
    ]
    points: list[AttachPoint] = [
        with_extras(p, gates={Gate.ROUTER}) for p in resolve(base, requests).points
    ]
    branched = branch(base, points, max_rank=RANK, slot_count=3, experts=EXPERTS)
    onnx.checker.check_model(base.model.proto, full_check=True)
    (made,) = branched.branches
    assert made.router is not None
    assert made.router.weight.shape == (2 * RANK, 2 * 3 * EXPERTS)
    columns = [
        column
        for part, slot in itertools.product(range(2), range(3))
        for column in range(2 * 3 * EXPERTS)[
            expert_columns(made.router, parts=2, slot_count=3, part=part, slot=slot)
        ]
    ]
    assert columns == list(range(2 * 3 * EXPERTS))
    roles = [weight.role for weight in updatable_weights(branched)]
    assert roles == [
        Role.A_WEIGHT,
        Role.B_WEIGHT,
        Role.ROUTER,
        Role.ROUTER_EXPANSION,
        Role.ROUTER_REST,
        Role.EXPANSION,
    ]


def test_the_use_case_of_these_tests_has_a_rank_for_every_expert() -> None:
    assert SLOTS[1][1] == EXPERTS
    assert expansion().shape == (len(ALPHA), RANK)


@pytest.mark.parametrize("layout", ["slot", "rank"])
def test_every_part_of_a_fused_projection_has_a_router(tmp_path: Path, layout: AlphaLayout) -> None:
    model = attention(layers=1, style="packed").model()
    base = opened(model, tmp_path)
    prefix = "model.layers.0.self_attn"
    sizes = (("v_proj", 4), ("q_proj", 8))
    requests = [request(f"{prefix}.{leaf}", 8, size) for leaf, size in sizes]
    (point,) = resolve(base, requests).points
    points = [with_extras(point, gates={Gate.ROUTER})]
    branched = branch(base, points, max_rank=RANK, alpha_layout=layout, experts=EXPERTS)
    (made,) = branched.branches
    assert made.router is not None
    A, B = factors(made, 3)
    for number, part in enumerate(made.attach.parts):
        # Rows of one part read the ranks of that part alone.
        other = np.ones(len(B), bool)
        other[part.offset : part.offset + part.size] = False
        B[other, number * RANK : (number + 1) * RANK] = 0
    weights, feeds, s = strengths(branched)
    routed = routed_values(made, np.random.default_rng(11))
    for m in (model, base.model.proto):
        m.graph.output.append(onnx.helper.make_tensor_value_info(made.y, 1, ["b", "s", 16]))
    x = np.random.default_rng(4).normal(size=(2, 3, 8)).astype(np.float32)
    _, plain = run(model, {"x": x})
    _, y = run(put(base.model.proto, stored(made, A, B) | weights | routed), {"x": x} | feeds)
    added, magnitude, bound = np.zeros(y.shape), np.zeros(y.shape), np.zeros(y.shape)
    start, rank = SLOTS[1][:2]
    for number in range(2):
        own = slice(number * RANK, (number + 1) * RANK)
        columns = expert_columns(made.router, parts=2, slot_count=2, part=number, slot=1)
        W = routed[made.router.weight.name][own, columns][start : start + rank]
        x64, A64, B64, W64 = (v.astype(np.float64) for v in (x, A[own], B[:, own], W))
        part_value, part_magnitude, logits = routed_reference(x64, A64, B64, s, W64, start)
        added += part_value
        magnitude += part_magnitude
        # As in check_router, for 8 inputs, 2 R ranks of which half have zeros, 3 tokens.
        d = (8 + 2 * RANK) * 2.0**-24 * logits * 1.01
        relative = float(np.exp(2 * d) - 1) + (4 + EXPERTS + 1 + 3 + 12 + 1) * 2.0**-24 * 1.01
        bound += relative * part_magnitude
    bound += error_bound(magnitude, 2 + len(SLOTS) + 1 + 8 + 2 + 2 * RANK, "float32")
    # The base: 8 products of factors below 4 and 2, here and there; the sum of both sides.
    bound += 2 * 8 * 2.0**-24 * 64 + 2.0**-24 * (64 + magnitude)
    assert np.all(np.abs(y - (plain + added)) <= bound)
    assert np.abs(added[..., :8]).max() > 100 * bound.max()
    assert np.array_equal(y[..., 8:12], plain[..., 8:12])
