"""AIMET encodings 1.0.0: two lists of entries.

    {"bw": 8, "dtype": "INT", "enc_type": "PER_CHANNEL", "is_sym": true, "name": "q.weight",
     "offset": [-128.0, -128.0], "scale": [0.003, 0.002]}

PER_BLOCK adds block_size, with flat scales; LPBQ adds block_size, compressed_bw and
per_block_int_scale, with one scale per channel. zero_point_shift holds what is added to the offsets
of half-step grids. Axes and the number of channels of PER_BLOCK are not stored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_quant.encodings.block_layout import flatten, unflatten
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.encoding_checks import check_bits
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.encodings.json_entry import JsonEntry, UnknownKeys, describe
from lora_quant.encodings.json_text import (
    Section,
    document_text,
    list_text,
    object_text,
    value_text,
)
from lora_quant.encodings.kinds import Granularity, NumberKind
from lora_quant.encodings.sections import (
    ACTIVATIONS,
    PARAMS,
    Entry,
    file_of_sections,
    members_of_sections,
)
from lora_quant.errors import EncodingsError, Where

VERSION = "1.0.0"
VERSIONS = (VERSION,)

_KINDS = {"INT": NumberKind.INT, "FLOAT": NumberKind.FLOAT}
_GRANULARITIES = {granularity.value: granularity for granularity in Granularity}
_KEYS = {"bw", "dtype", "enc_type", "is_sym", "name", "offset", "scale", "zero_point_shift"}
_BLOCK_KEYS = {
    Granularity.PER_BLOCK: {"block_size"},
    Granularity.LPBQ: {"block_size", "compressed_bw", "per_block_int_scale"},
}


def read(document: Mapping[str, Any]) -> EncodingFile:
    """The content of a parsed document; EncodingsError with tensor and path if it is malformed."""
    unknown = UnknownKeys()
    file = file_of_sections(
        document,
        _read_section(document, ACTIVATIONS, unknown),
        _read_section(document, PARAMS, unknown),
    )
    return replace(file, findings=unknown.findings())


def write(file: EncodingFile) -> dict[str, Any]:
    """The document of `file` as JSON values."""
    document: dict[str, Any] = json.loads("".join(text(file)))
    return document


def text(file: EncodingFile) -> Iterator[str]:
    """The document of `file`, piece by piece."""

    def section(names: tuple[str, ...]) -> Section:
        return Section(
            keyed=False, entries=((n, entry_text(file.encodings[n], name=n)) for n in names)
        )

    return document_text(members_of_sections(file, section))


def read_entry(entry: JsonEntry, unknown: UnknownKeys) -> Encoding:
    """The encoding of one entry."""
    kind = entry.choice("dtype", _KINDS)
    granularity = entry.choice("enc_type", _GRANULARITIES)
    bits = entry.integer("bw")
    if kind is NumberKind.FLOAT:
        unknown.note(entry.members.keys() - _KEYS, entry.tensor)
        return entry.build(lambda: Encoding.floating(bits))
    symmetric = entry.flag("is_sym")
    scale, offset = _list(entry, "scale"), _list(entry, "offset")
    if "zero_point_shift" in entry.members:
        shift = entry.numbers("zero_point_shift")
        if shift.shape not in ((), offset.shape):
            entry.fail("the shifts are not one per offset", key="zero_point_shift")
        offset = offset + shift
    unknown.note(entry.members.keys() - _KEYS - _BLOCK_KEYS.get(granularity, set()), entry.tensor)

    def build() -> Encoding:
        if granularity is Granularity.PER_TENSOR:
            if scale.size != 1 or offset.size != 1:
                entry.fail(f"PER_TENSOR with {scale.size} scales and {offset.size} offsets")
            return Encoding.per_tensor(scale[0], offset[0], bits=bits, symmetric=symmetric)
        if granularity is Granularity.PER_CHANNEL:
            return Encoding.per_channel(scale, offset, bits=bits, symmetric=symmetric)
        block_size = entry.integer("block_size")
        if granularity is Granularity.PER_BLOCK:
            return Encoding.per_block(
                scale, offset, bits=bits, symmetric=symmetric, block_size=block_size
            )
        return _lpbq(entry, bits, symmetric, scale, offset, block_size)

    return entry.build(build)


def entry_text(encoding: Encoding, *, name: str | None) -> str:
    """One entry; without its name for a fragment."""
    members = {
        "bw": value_text(encoding.bits),
        "dtype": value_text(encoding.kind.name),
        "enc_type": value_text(encoding.granularity.value),
    }
    if name is not None:
        members["name"] = value_text(name)
    scale, offset = encoding.scale, encoding.offset
    if scale is None or offset is None:
        return object_text(members)
    members["is_sym"] = value_text(encoding.symmetric)
    blocks = encoding.block_scale
    if blocks is not None:
        members["compressed_bw"] = value_text(encoding.compressed_bits)
        members["per_block_int_scale"] = list_text(flatten(blocks, encoding), whole=True)
    elif scale.ndim == 2:
        scale, offset = flatten(scale, encoding), flatten(offset, encoding)
    scale, offset = np.atleast_1d(scale), np.atleast_1d(offset)
    whole = np.floor(offset)
    if (whole != offset).any():
        members["zero_point_shift"] = list_text(offset - whole)
    if encoding.block_size is not None:
        members["block_size"] = value_text(encoding.block_size)
    members["scale"] = list_text(scale)
    # AIMET writes the offsets of LPBQ as integers and all others as floats.
    members["offset"] = list_text(whole, whole=blocks is not None)
    return object_text(members)


def _read_section(document: Mapping[str, Any], key: str, unknown: UnknownKeys) -> Iterator[Entry]:
    section = document.get(key, [])
    if not isinstance(section, list):
        raise EncodingsError(
            f"expected a list of entries, got {describe(section)}",
            where=Where(field=key),
            hint="an object name -> entries is the layout of version 0.6.1",
        )
    for index, value in enumerate(section):
        path = f"{key}[{index}]"
        name = JsonEntry.of(value, tensor=None, path=path).text("name")
        entry = JsonEntry(value, name, path)
        yield name, path, read_entry(entry, unknown)


def _list(entry: JsonEntry, key: str) -> NDArray[np.float64]:
    array = entry.numbers(key)
    if array.ndim != 1:
        entry.fail(f"expected a flat list of numbers, got shape {list(array.shape)}", key=key)
    return array


def _lpbq(
    entry: JsonEntry,
    bits: int,
    symmetric: bool,
    scale: NDArray[np.float64],
    offset: NDArray[np.float64],
    block_size: int,
) -> Encoding:
    check_bits(bits)
    middle = -(2.0 ** (bits - 1))
    if not symmetric or (offset != middle).any() or offset.shape != scale.shape:
        entry.fail(f"LPBQ is symmetric with one offset of {middle:.0f} per channel", key="offset")
    if not scale.size:
        entry.fail("LPBQ needs at least one channel", key="scale")
    return Encoding.lpbq(
        scale,
        unflatten(_list(entry, "per_block_int_scale"), scale.size, block_major=False),
        compressed_bits=entry.integer("compressed_bw"),
        bits=bits,
        block_size=block_size,
    )
