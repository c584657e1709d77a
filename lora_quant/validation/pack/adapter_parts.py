"""Tensors of an adapter file that mean something only together.

    the codes of a tensor    their scale and zero point
    A of an attach point     its B
    tensors of one rank axis all others of that axis

What a file lacks keeps its default, without a word from the engine. With the codes of one grid and
the scale of another, the use case would compute something else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from lora_quant.config.manifest_records import OverridableRecord
from lora_quant.errors import some
from lora_quant.findings import Finding
from lora_quant.validation.files.adapter_file import AdapterParameter
from lora_quant.validation.pack.adapter_view import REBUILD, AdapterView
from lora_quant.validation.pack.overridable import ANY, Default, owner_of


def check_parts(given: AdapterView) -> Iterator[Finding]:
    """Whole grids, scales that are none, whole branches."""
    parts: dict[str, list[OverridableRecord]] = defaultdict(list)
    for record in given.target.inputs:
        parts[owner_of(record)].append(record)
    for tensor, records in parts.items():
        # The blocks of 4 bits, which have no zero point, may have negative scales.
        positive = any(record.part == "zero_point" for record in records)
        for record in records:
            if record.part == "scale" and record.name in given.found:
                yield from _scale(given, given.found[record.name], positive=positive)
        lacking = [record.name for record in records if record.name not in given.found]
        if lacking and len(lacking) < len(records):
            yield given.error(
                "grid",
                "the file has a part of what the tensor is quantized with, and lacks "
                f"{some(lacking)}: the defaults would be taken for it",
                tensor=tensor,
                hint=REBUILD,
            )
    yield from _branches(given, set(parts))


def _scale(given: AdapterView, parameter: AdapterParameter, *, positive: bool) -> Iterator[Finding]:
    wrong = sum(
        int(np.count_nonzero(chunk <= 0 if positive else chunk == 0))
        for chunk in given.adapter.chunks(parameter)
    )
    if wrong:
        yield given.error(
            "scale",
            f"{wrong} of the scales are 0" + (" or below" if positive else ""),
            tensor=parameter.name,
            hint=REBUILD,
        )


def _branches(given: AdapterView, replaceable: set[str]) -> Iterator[Finding]:
    filled = {owner_of(r) for name, r in given.records.items() if name in given.found}
    for point in given.view.manifest.attach_points:
        if point.tensors is None:
            continue
        pair = (point.tensors.a_weight, point.tensors.b_weight)
        lacking = [name for name in pair if name not in filled]
        if len(lacking) == 1 and replaceable.issuperset(pair):
            yield given.error(
                "branch",
                f"the file has one of the factors of {point.name!r}, and lacks {lacking[0]!r}: the "
                "adapter would do nothing there",
                tensor=lacking[0],
                hint=REBUILD,
            )


def check_ranks(given: AdapterView, defaults: Mapping[str, Default]) -> Iterator[Finding]:
    """Inputs that share an open size have the same one; what is not replaced has its default's."""
    sizes: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, default in defaults.items():
        parameter = given.found.get(name)
        shape = default.default if parameter is None else parameter.shape
        if len(shape) != len(default.sizes):
            continue  # another rule tells of the shape
        for declared, size in zip(default.sizes, shape, strict=True):
            if isinstance(declared, str) and declared != ANY:
                sizes[declared][size].append(name)
    for symbol, by_size in sizes.items():
        if len(by_size) == 1:
            continue
        told = "; ".join(
            f"{size} in {some([_told(name, given) for name in dict.fromkeys(names)], most=2)}"
            for size, names in sorted(by_size.items())
        )
        yield given.error(
            "rank",
            f"tensors that share the size {symbol!r} have different ones: {told}",
            tensor=_odd_one(by_size.values(), given),
            hint=REBUILD,
        )


def _told(name: str, given: AdapterView) -> str:
    return name if name in given.found else f"{name} (its default)"


def _odd_one(names: Iterable[list[str]], given: AdapterView) -> str | None:
    """A tensor of the file among those whose size fewest have."""
    ordered = (name for group in sorted(names, key=len) for name in group)
    return next((name for name in ordered if name in given.found), None)
