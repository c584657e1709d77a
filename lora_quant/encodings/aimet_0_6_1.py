"""AIMET encodings 0.6.1, and its predecessors 0.5.0 and 0.4.0.

    "activation_encodings": {"y": [{"bitwidth": 16, "dtype": "int", "is_symmetric": "False",
                                    "max": 1.4, "min": -2.0, "offset": -38263.0, "scale": 5e-05}]}

One entry is per tensor, several are one per channel: a weight of one channel cannot be told from a
per-tensor one, and blocks not from channels. min = offset * scale and max = (offset + 2**bits - 1)
* scale in double precision, which gives AIMET's own figures bit for bit; they are derived.
0.5.0 has no quantizer_args, 0.4.0 no dtype either.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import repeat
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.encodings.json_entry import JsonEntry, UnknownKeys, describe
from lora_quant.encodings.json_text import Section, document_text, value_text
from lora_quant.encodings.kinds import BLOCKWISE, NumberKind
from lora_quant.encodings.sections import (
    ACTIVATIONS,
    PARAMS,
    Entry,
    file_of_sections,
    members_of_sections,
)
from lora_quant.errors import NOWHERE, EncodingsError, Where
from lora_quant.findings import Finding, Severity

VERSION = "0.6.1"
VERSIONS = ("0.4.0", "0.5.0", "0.6.1")

_KINDS = {"int": NumberKind.INT, "float": NumberKind.FLOAT}
MOST_STALE = 50
"""How many values of min and max that fit no grid are told of one file."""

_KEYS = {"bitwidth", "dtype", "is_symmetric", "max", "min", "offset", "scale"}


def read(document: Mapping[str, Any]) -> EncodingFile:
    """The content of a parsed document; EncodingsError with tensor and path if it is malformed."""
    unknown = UnknownKeys()
    stale: list[Finding] = []
    activations, params = (
        _read_section(document, key, unknown, stale) for key in (ACTIVATIONS, PARAMS)
    )
    file = file_of_sections(document, activations, params)
    return replace(file, findings=(*unknown.findings(), *_told(stale)))


def write(file: EncodingFile) -> dict[str, Any]:
    """The document of `file` as JSON values."""
    document: dict[str, Any] = json.loads("".join(text(file)))
    return document


def text(file: EncodingFile) -> Iterator[str]:
    """The document of `file`, piece by piece."""
    with_dtype = file.version != "0.4.0"

    def section(names: tuple[str, ...]) -> Section:
        return Section(
            keyed=True,
            entries=((n, entry_text(n, file.encodings[n], with_dtype=with_dtype)) for n in names),
        )

    return document_text(members_of_sections(file, section))


def entry_text(name: str, encoding: Encoding, *, with_dtype: bool = True) -> str:
    """The list of entries of one tensor; EncodingsError for blocks, which 0.6.1 cannot express."""
    if encoding.kind is NumberKind.FLOAT:
        if not with_dtype:
            raise EncodingsError(
                "encodings 0.4.0 cannot say that a tensor stays in floating point",
                where=Where(tensor=name),
                hint="write version 0.6.1",
            )
        return value_text([{"bitwidth": encoding.bits, "dtype": "float"}])
    check_expressible(encoding, where=Where(tensor=name))
    dtype = '"dtype": "int", ' if with_dtype else ""
    head = f'{{"bitwidth": {encoding.bits}, {dtype}"is_symmetric": "{encoding.symmetric}", '
    scale, offset = np.atleast_1d(encoding.step_scale), np.atleast_1d(encoding.step_offset)
    if (offset == offset[0]).all():
        offsets: Iterator[str] = repeat(repr(float(offset[0])), offset.size)
    else:
        offsets = map(repr, offset.tolist())
    rows = zip(
        np.atleast_1d(encoding.maximum).tolist(),
        np.atleast_1d(encoding.minimum).tolist(),
        offsets,
        scale.tolist(),
        strict=True,
    )
    return (
        "["
        + ", ".join(
            f'{head}"max": {high!r}, "min": {low!r}, "offset": {shift}, "scale": {step!r}}}'
            for high, low, shift, step in rows
        )
        + "]"
    )


def check_expressible(encoding: Encoding, *, where: Where = NOWHERE) -> None:
    """EncodingsError for blocks, which 0.6.1 has no way to tell from channels."""
    if encoding.granularity in BLOCKWISE:
        raise EncodingsError(
            f"encodings 0.6.1 cannot express {encoding.granularity.value}",
            where=where,
            hint="a list of entries would be read as channels; write 1.0.0 or 2.0.0",
        )


def _read_section(
    document: Mapping[str, Any], key: str, unknown: UnknownKeys, stale: list[Finding]
) -> Iterator[Entry]:
    section = document.get(key, {})
    if not isinstance(section, Mapping):
        raise EncodingsError(
            f"expected an object name -> list of entries, got {describe(section)}",
            where=Where(field=key),
            hint="lists are the layout of version 1.0.0",
        )
    for name, entries in section.items():
        yield name, f"{key}.{name}", _read_entries(name, entries, f"{key}.{name}", unknown, stale)


def _read_entries(
    name: str, entries: Any, path: str, unknown: UnknownKeys, stale: list[Finding]
) -> Encoding:
    if not isinstance(entries, list) or not entries:
        raise EncodingsError(
            f"expected a list of at least one entry, got {describe(entries)}",
            where=Where(tensor=name, field=path),
        )
    first = JsonEntry.of(entries[0], tensor=name, path=f"{path}[0]")
    columns = _columns(name, entries, path)
    for key in columns.keys() & {"bitwidth", "dtype", "is_symmetric"}:
        if columns[key].count(columns[key][0]) != len(entries):
            first.fail(f"the entries of one tensor differ in {key!r}", key=key)
    kind = first.choice("dtype", _KINDS) if "dtype" in columns else NumberKind.INT
    bits = first.integer("bitwidth")
    unknown.note(columns.keys() - _KEYS, name)
    if kind is NumberKind.FLOAT:
        return first.build(lambda: Encoding.floating(bits))
    symmetric = first.flag("is_symmetric")
    first.get("scale"), first.get("offset")
    scale, offset = (_numbers(name, columns, key, path) for key in ("scale", "offset"))
    if len(entries) == 1:
        encoding = first.build(
            lambda: Encoding.per_tensor(scale[0], offset[0], bits=bits, symmetric=symmetric)
        )
    else:
        whole = JsonEntry({}, name, path)
        encoding = whole.build(
            lambda: Encoding.per_channel(scale, offset, bits=bits, symmetric=symmetric)
        )
    if columns.keys() >= {"min", "max"}:
        low, high = (_numbers(name, columns, key, path) for key in ("min", "max"))
        stale.extend(_stale_range(name, path, encoding, low, high))
    return encoding


def _columns(name: str, entries: list[Mapping[str, Any]], path: str) -> dict[str, tuple[Any, ...]]:
    """The entries of one tensor by key; each entry is looked at in C, there may be a million."""
    keys = sorted(entries[0])
    columns: dict[str, tuple[Any, ...]] = {}
    if keys and set(map(type, entries)) == {dict} and set(map(len, entries)) == {len(keys)}:
        try:
            columns = {key: tuple(map(itemgetter(key), entries)) for key in keys}
        except KeyError:
            columns = {}
    if not columns:
        index = next((i for i, e in enumerate(entries) if not _has_keys(e, keys)), 0)
        raise EncodingsError(
            "the entry does not have the same keys as the first one of the tensor",
            where=Where(tensor=name, field=f"{path}[{index}]"),
        )
    return columns


def _has_keys(entry: Any, keys: list[str]) -> bool:
    return isinstance(entry, dict) and sorted(entry) == keys


def _numbers(
    name: str, columns: Mapping[str, tuple[Any, ...]], key: str, path: str
) -> NDArray[np.float64]:
    values = columns[key]
    if not set(map(type, values)) <= {float, int}:
        index = next(i for i, value in enumerate(values) if type(value) not in (float, int))
        raise EncodingsError(
            f"expected a number, got {describe(values[index])}",
            where=Where(tensor=name, field=f"{path}[{index}].{key}"),
        )
    return JsonEntry({key: list(values)}, name, path).numbers(key)


def _told(stale: list[Finding]) -> list[Finding]:
    """Of very many findings about ranges the first, and one with the number left."""
    rest = len(stale) - MOST_STALE
    if rest <= 0:
        return stale
    message = f"{rest} more values of min or max do not fit scale and offset, which are used"
    return [
        *stale[:MOST_STALE],
        Finding("encodings/stale-range", Severity.WARNING, message, Where()),
    ]


def _stale_range(
    name: str, path: str, encoding: Encoding, low: NDArray[np.float64], high: NDArray[np.float64]
) -> Iterator[Finding]:
    """A finding if min and max tell of another grid than scale and offset.

    Writers that compute min and max in float32 are off by its rounding, 2**-22 of the value being
    four units in its last place; what is more than that and than half a step is another grid.
    """
    for key, stored, derived in (("min", low, encoding.minimum), ("max", high, encoding.maximum)):
        allowed = np.maximum(0.5 * encoding.step_scale, 2.0**-22 * np.abs(derived))
        wrong = np.flatnonzero(np.abs(stored - derived) > allowed)
        if wrong.size:
            index = int(wrong[0])
            yield Finding(
                "encodings/stale-range",
                Severity.WARNING,
                f"{key} is {float(stored[index])!r} but scale and offset give "
                f"{float(np.atleast_1d(derived)[index])!r}; scale and offset are used",
                Where(tensor=name, field=f"{path}[{index}].{key}"),
            )
