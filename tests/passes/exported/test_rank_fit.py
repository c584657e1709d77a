"""Whose ranks are whose: every arrangement that fits, held against trying all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_quant.passes.exported.decide import Decision, Remark, Undecided, decide
from lora_quant.passes.exported.rank_fit import Fit, arrangements, smaller_fits
from lora_quant.passes.exported.readings import Law, Owner, RankScales

Place = tuple[str, int, int]  # adapter, branch, first rank


def owner(name: str, rank: int, factor: float, slot: int = 0, **options: Any) -> Owner:
    return Owner(name, rank, {Law.LORA: factor}, options.get("strength", 1.0), slot)


def branch(
    scale: Sequence[float], empty: Sequence[bool] | None = None, **options: Any
) -> RankScales:
    flags = np.zeros(len(scale), bool) if empty is None else np.array(empty)
    return RankScales(np.array(scale, float), flags, **options)


def always(*_: object) -> bool:
    return True


def places(fit: Fit) -> frozenset[Place]:
    return frozenset(
        (one.adapter, number, one.begin) for number, ranks in enumerate(fit.ranks) for one in ranks
    )


def by_trying(
    scales: Sequence[Sequence[float]], owners: Sequence[tuple[str, int, float]]
) -> set[frozenset[Place]]:
    """All ways to cover every rank by ranges of equal values, one for each owner."""
    found = set()
    cells = [(number, rank) for number, one in enumerate(scales) for rank in range(len(one))]
    for order in permutations(owners):
        at, here = 0, []
        for name, rank, factor in order:
            covered = cells[at : at + rank]
            if len(covered) < rank or len({number for number, _ in covered}) > 1:
                break
            if any(scales[number][one] != factor for number, one in covered):
                break
            here.append((name, *covered[0]))
            at += rank
        else:
            if at == len(cells):
                found.add(frozenset(here))
    return found


LAYOUTS = st.lists(
    st.lists(st.tuples(st.integers(1, 3), st.sampled_from([1.0, 2.0])), min_size=1, max_size=3),
    min_size=1,
    max_size=2,
)


@given(LAYOUTS, st.randoms(use_true_random=False), st.booleans())
def test_all_arrangements_are_found(layout: Any, random: Any, spoil: bool) -> None:
    scales = [[factor for rank, factor in ranks for _ in range(rank)] for ranks in layout]
    parts = [part for ranks in layout for part in ranks]
    owners = [(f"a{i}", rank, factor) for i, (rank, factor) in enumerate(parts)]
    random.shuffle(owners)
    if spoil:
        owners[0] = (owners[0][0], owners[0][1] + 1, owners[0][2])
    branches = [branch(one) for one in scales]
    given_owners = [owner(*one, slot=i) for i, one in enumerate(owners)]
    found = list(arrangements(branches, given_owners, always, gaps=False))
    assert {places(fit) for fit in found} == by_trying(scales, owners)
    assert len(found) == len({places(fit) for fit in found})
    listed = [fit for fit in found if fit.order == tuple(name for name, *_ in owners)]
    assert found[: len(listed)] == listed  # the given order comes first


@given(
    st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=5),
    st.integers(0, 3),
)
def test_modules_that_adapters_skip(parts: list[tuple[int, bool]], padding: int) -> None:
    """PEFT's concatenation: what is there, in order, front to back, then zeros."""
    owners = [owner(f"a{i}", rank, 2.0**i, i) for i, (rank, _) in enumerate(parts)]
    there = [(f"a{i}", rank, 2.0**i) for i, (rank, is_there) in enumerate(parts) if is_there]
    scale = [factor for _, rank, factor in there for _ in range(rank)] + [0.0] * padding
    if not scale:
        return
    decided = decide([(branch(scale),)], owners, always)
    assert isinstance(decided, Decision)
    begins = np.cumsum([0, *(rank for _, rank, _ in there)]).tolist()
    expected = {(name, 0, begin) for (name, _, _), begin in zip(there, begins, strict=False)}
    assert places(decided.fit) == expected
    assert decided.remark is (None if len(there) == len(owners) else Remark.NOT_ALL)


def test_equal_ranks_and_scales_are_taken_in_the_listed_order() -> None:
    owners = [owner("tone", 2, 3.0), owner("legal", 2, 3.0)]
    decided = decide([(branch([3.0] * 4),)], owners, always)
    assert isinstance(decided, Decision)
    assert decided.fit.order == ("tone", "legal")
    assert decided.remark is Remark.ORDER_ASSUMED


def test_values_that_are_known_decide() -> None:
    owners = [owner("tone", 2, 3.0), owner("legal", 2, 3.0)]

    def holds(one: Owner, number: int, begin: int) -> bool:
        return one.adapter != "tone" or begin == 2

    decided = decide([(branch([3.0] * 4),)], owners, holds)
    assert isinstance(decided, Decision)
    assert decided.fit.order == ("legal", "tone")
    assert decided.remark is Remark.OTHER_ORDER


def test_ranks_tell_another_order() -> None:
    owners = [owner("tone", 2, 3.0), owner("legal", 3, 5.0)]
    decided = decide([(branch([5.0] * 3 + [3.0] * 2),)], owners, always)
    assert isinstance(decided, Decision)
    assert decided.fit.order == ("legal", "tone")
    assert decided.remark is Remark.OTHER_ORDER


def test_two_that_are_alike_in_another_order_than_the_listed_one() -> None:
    owners = [owner("tone", 2, 3.0), owner("legal", 2, 3.0), owner("style", 1, 7.0)]
    decided = decide([(branch([7.0] + [3.0] * 4),)], owners, always)
    assert isinstance(decided, Undecided)
    assert len(decided.fits) == 2


def test_one_of_two_that_are_alike() -> None:
    owners = [owner("tone", 2, 3.0), owner("legal", 2, 3.0)]
    decided = decide([(branch([3.0] * 2),)], owners, always)
    assert isinstance(decided, Undecided)
    assert {fit.order for fit in decided.fits} == {("tone",), ("legal",)}


def test_fixed_slots_with_zero_rows() -> None:
    """A graph that has slots already: the one of an adapter that is not here is empty."""
    owners = [owner("legal", 3, 5.0, slot=1)]
    scales = branch([3.0, 3.0, 5.0, 5.0, 5.0], [True, True, False, False, False])
    decided = decide([(scales,)], owners, always)
    assert isinstance(decided, Decision)
    assert places(decided.fit) == {("legal", 0, 2)}


def test_slots_of_a_matrix_decide() -> None:
    owners = [owner("tone", 2, 3.0, 0), owner("legal", 2, 3.0, 1)]
    slots = np.array([1, 1, 0, 0])
    decided = decide([(branch([3.0] * 4, at_run_time=True, slots=slots),)], owners, always)
    assert isinstance(decided, Decision)
    assert decided.fit.order == ("legal", "tone")


def test_chained_branches_hold_one_adapter_each() -> None:
    owners = [owner("tone", 2, 3.0), owner("legal", 3, 5.0)]
    decided = decide([(branch([3.0] * 2),), (branch([5.0] * 3),)], owners, always)
    assert isinstance(decided, Decision)
    assert places(decided.fit) == {("tone", 0, 0), ("legal", 1, 0)}
    assert decided.remark is None


def test_ranks_that_nobody_owns_have_to_be_without_effect() -> None:
    assert decide([(branch([3.0] * 2),)], [], always) == Undecided(())
    assert isinstance(decide([(branch([3.0] * 2, [True, True]),)], [], always), Decision)


def test_a_branch_of_an_adapter_that_was_never_trained() -> None:
    """B is zero: its ranks are the adapter's all the same."""
    decided = decide([(branch([3.0] * 2, [True, True]),)], [owner("tone", 2, 3.0)], always)
    assert isinstance(decided, Decision)
    assert places(decided.fit) == {("tone", 0, 0)}


@pytest.mark.parametrize(("got", "fits"), [(1.4, True), (1.4027, True), (1.4028, False)])
def test_a_scale_is_known_up_to_its_roundings(got: float, fits: bool) -> None:
    """Two units in the last place of float16: 2 * 2**-10 of 1.4 is 0.00273."""
    scales = branch([got], tolerance=2 * 2**-10)
    assert bool(scales.fitting(owner("tone", 1, 2.0, strength=0.7), 0)) is fits


def test_an_adapter_of_strength_zero_has_the_ranks_that_hold_values() -> None:
    """Two ranks of padding, then two of another branch: all have the factor 0."""
    owners = [owner("legal", 1, 3.0), owner("tone", 2, 2.0, strength=0.0)]
    branches = [(branch([3.0, 0.0, 0.0], [False, True, True]),), (branch([0.0, 0.0]),)]
    decided = decide(branches, owners, always)
    assert isinstance(decided, Decision)
    assert places(decided.fit) == {("legal", 0, 0), ("tone", 1, 0)}


def test_padding_that_holds_values_is_nobodys_where_nothing_else_fits() -> None:
    owners = [owner("legal", 1, 3.0), owner("tone", 2, 2.0, strength=0.0)]
    decided = decide([(branch([3.0, 0.0, 0.0, 0.0]),)], owners, always)
    assert isinstance(decided, Decision)
    assert places(decided.fit) == {("legal", 0, 0), ("tone", 0, 1)}


def test_an_adapter_that_is_known_to_have_ranks_comes_before_one_that_may_have_some() -> None:
    may, has = owner("tone", 2, 2.0), replace(owner("legal", 2, 2.0), is_known=True)
    for owners in ([may, has], [has, may]):
        decided = decide([(branch([2.0, 2.0]),)], owners, always)
        assert isinstance(decided, Decision)
        assert decided.fit.order == ("legal",)
    assert isinstance(decide([(branch([2.0, 2.0]),)], [may, owner("x", 2, 2.0)], always), Undecided)


def test_an_input_may_bring_the_strength() -> None:
    soft = owner("tone", 1, 2.0, strength=0.5)
    for scale, alone, with_input in ((1.0, True, True), (2.0, False, True), (4.0, False, False)):
        assert bool(branch([scale]).fitting(soft, 0)) is alone
        assert bool(branch([scale], at_run_time=True).fitting(soft, 0)) is with_input


@settings(max_examples=20)
@given(st.integers(1, 9))
def test_many_that_are_alike_and_do_not_add_up_are_refused_soon(count: int) -> None:
    """The states are subsets, not orders: 2**9 and not 9!."""
    calls = 0

    def counted(*_: object) -> bool:
        nonlocal calls
        calls += 1
        return True

    owners = [owner(f"a{i}", 2, 3.0, i) for i in range(count)]
    scales = branch([3.0] * (2 * count - 1) + [4.0])
    assert not list(arrangements([scales], owners, counted, gaps=False))
    assert calls <= count * 2**count


def test_smaller_choices_come_largest_first() -> None:
    owners = [owner("tone", 1, 3.0), owner("legal", 1, 3.0), owner("style", 1, 3.0)]
    scales = branch([3.0, 3.0])
    orders = [fit.order for fit in smaller_fits([scales], owners, always, gaps=False)]
    assert orders == [("tone", "legal"), ("tone", "style"), ("legal", "style")]


@pytest.mark.parametrize("count", [16, 64, 400])
@pytest.mark.parametrize("scale", ["wrong at the end", "half of them"])
def test_what_does_not_fit_is_given_up_soon_however_many_adapters_there_are(
    count: int, scale: str
) -> None:
    calls = 0

    def counted(*_: object) -> bool:
        nonlocal calls
        calls += 1
        return True

    owners = [owner(f"a{i}", 2, 3.0, i) for i in range(count)]
    values = [3.0] * (2 * count - 1) + [4.0] if scale == "wrong at the end" else [3.0] * count
    assert decide([(branch(values),)], owners, counted) == Undecided((), is_open=True)
    assert calls <= 20_000


def test_many_adapters_in_their_order_are_found_at_once() -> None:
    owners = [owner(f"a{i}", 2, 3.0, i) for i in range(64)]
    decided = decide([(branch([3.0] * 128),)], owners, always)
    assert isinstance(decided, Decision)
    assert decided.remark is Remark.ORDER_ASSUMED


def test_any_number_of_idle_ranks_may_lie_between_adapters() -> None:
    idle = 3000  # more than Python recurses
    scales = branch([3.0] * (4 + idle), [False] * 2 + [True] * idle + [False] * 2)
    decided = decide([(scales,)], [owner("tone", 2, 3.0), owner("legal", 2, 3.0, 1)], always)
    assert isinstance(decided, Decision)
    assert ("tone", 0, 0) in places(decided.fit)
