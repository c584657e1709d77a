"""Groups of attach points that are filled alike, and the ranks that a use case takes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.api import build
from lora_quant.config.lora_config import read_lora_config
from lora_quant.config.options import BuildOptions
from lora_quant.graph.base.base_graph import open_base
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.merging.contributions import contributions
from lora_quant.passes.rank_groups import RankBlock, RankGroup, rank_groups
from lora_quant.passes.runner import default_passes, run_passes
from lora_quant.passes.slots import Slot
from tests.sample import CONFIG, MAX_RANK, MODULES, STYLE, TONE


def compiled(options: BuildOptions | None = None) -> Compilation:
    """The sample up to the branches."""
    config = read_lora_config(CONFIG)
    start = Compilation(config, options or BuildOptions(), open_base(config.use_cases[0].model))
    passes = [one for one in default_passes() if one.name not in ("emit-packs", "validate-packs")]
    return run_passes(start, passes, check_conditions=True)


@pytest.fixture(scope="module")
def sample() -> Compilation:
    return compiled()


def test_every_branch_is_in_one_group(sample: Compilation) -> None:
    groups = rank_groups(sample)
    assert sorted(point for group in groups for point in group.points) == sorted(MODULES)
    assert [group.number for group in groups] == list(range(len(groups)))


def test_points_of_one_group_are_filled_alike_in_every_use_case(sample: Compilation) -> None:
    groups = rank_groups(sample)
    by_point = {point: group for group in groups for point in group.points}
    for use_case in sample.having("slots").use_cases:
        found = contributions(sample, use_case)
        for point, group in by_point.items():
            filled = sum(item.rank for item in found.get(point, ()))
            assert (use_case in group.fills) == bool(filled)
            if filled:
                assert group.ranks(use_case) == filled
    assert len({by_point[point].number for point in TONE}) == 1
    assert len({by_point[point].number for point in STYLE}) == 2, "one has another rank"


def test_e_has_the_scale_of_each_slot_on_the_ranks_that_it_fills(sample: Compilation) -> None:
    table = sample.having("slots")
    for group in rank_groups(sample):
        for use_case in group.fills:
            slots = table.use_cases[use_case]
            matrix = group.expansion(use_case, slots, table.slot_count)
            assert matrix.shape == (table.slot_count, group.ranks(use_case))
            assert (np.count_nonzero(matrix, axis=0) == 1).all()
            for block in group.fills[use_case]:
                assert (matrix[block.slot, block.at : block.at + block.size] > 0).all()
                assert slots[block.slot].start <= block.start < MAX_RANK


@pytest.mark.parametrize("multiple", [1, 4, 16])
def test_blocks_begin_at_multiples_of_what_slots_do(multiple: int) -> None:
    for group in rank_groups(compiled(BuildOptions(rank_multiple=multiple))):
        for use_case, blocks in group.fills.items():
            assert all(b.start % multiple == b.at % multiple == 0 for b in blocks)
            assert group.ranks(use_case) % multiple == 0


def test_a_fixed_group_is_as_long_as_its_fullest_use_case(sample: Compilation) -> None:
    fixed = rank_groups(sample, fixed=MODULES)
    for group in fixed:
        longest = max(blocks[-1].at + blocks[-1].size for blocks in group.fills.values())
        assert group.width == longest
        assert {group.ranks(use_case) for use_case in group.fills} == {group.width}


@st.composite
def placed_ranks(draw: st.DrawFn) -> tuple[RankGroup, int, list[Slot]]:
    """Parts of R ranks, slots one after the other, some of whose ranks a module fills."""
    parts = draw(st.integers(1, 3))
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    total = sum(sizes) + draw(st.integers(0, 2))
    starts = np.cumsum([0, *sizes])
    slots = [
        Slot(i, f"a{i}", int(starts[i]), size, 1.0, draw(st.sampled_from([0.5, 1.0, 2.0])))
        for i, size in enumerate(sizes)
    ]
    blocks: list[RankBlock] = []
    end = 0
    for part in range(parts):
        for slot in slots:
            rank = draw(st.integers(0, slot.rank))
            if rank:
                blocks.append(RankBlock(slot.index, part * total + slot.start, end, rank))
                end += rank
    width = draw(st.sampled_from([None, end + 3])) if blocks else None
    fills = {"it": tuple(blocks)} if blocks else {}
    return RankGroup(0, ("point",), fills, width), parts * total, slots


@given(placed_ranks(), st.integers(0, 2**32 - 1))
def test_taken_ranks_add_up_to_what_the_padded_ones_do(
    placed: tuple[RankGroup, int, list[Slot]], seed: int
) -> None:
    """Small whole numbers and scales of powers of two: every sum is exact in float64."""
    group, padded, slots = placed
    if not group.fills:
        return
    rng = np.random.default_rng(seed)
    A, B = np.zeros((3, padded)), np.zeros((padded, 4))
    s = np.zeros(padded)
    alpha = rng.integers(-4, 5, len(slots)).astype(np.float64)
    for block in group.fills["it"]:
        ranks = slice(block.start, block.start + block.size)
        A[:, ranks] = rng.integers(-8, 9, (3, block.size))
        B[ranks] = rng.integers(-8, 9, (block.size, 4))
        s[ranks] = alpha[block.slot] * slots[block.slot].scale
    taken_a = group.take(A, 1, "it").astype(np.float64)
    taken_b = group.take(B, 0, "it").astype(np.float64)
    taken_s = alpha @ group.expansion("it", slots, len(slots)).astype(np.float64)
    assert taken_a.shape == (3, group.ranks("it"))
    np.testing.assert_array_equal((taken_a * taken_s) @ taken_b, (A * s) @ B)
    positions = group.positions("it")
    np.testing.assert_array_equal(taken_a[:, : len(positions)], A[:, positions])


def test_the_sample_builds_with_both_targets(tmp_path: Path) -> None:
    result = build(CONFIG, tmp_path / "out", BuildOptions(targets=("qairt", "onnxruntime")))
    rules = [finding.rule for finding in result.findings]
    alone = build(CONFIG, tmp_path / "alone", BuildOptions(targets=("qairt",)))
    assert rules == [finding.rule for finding in alone.findings], "nothing is told twice"
