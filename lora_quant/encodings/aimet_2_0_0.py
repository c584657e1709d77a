"""AIMET encodings 2.0.0: one list of entries in the terms of ONNX's QuantizeLinear.

    {"axis": 1, "name": "q.weight", "output_dtype": "int8", "y_scale": [0.003, 0.002]}
    {"name": "y", "output_dtype": "uint16", "y_scale": 5e-05, "y_zero_point": 38263}

x = (q - y_zero_point) * y_scale with q in the range of output_dtype, so our offset is
-y_zero_point for unsigned types and -y_zero_point - 2**(bits - 1) for signed ones. `axis` is the
channel axis, with a `block_size` the block axis; scales of blocks have the weight's axes. LPBQ has
per_block_int_scale and per_channel_float_scale instead of y_scale; its decompressed width is twice
that of output_dtype. A tensor that stays in floating point has no entry.

2.1.0 differs by y_scale as an object (double quantization), which is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_quant.encodings.block_layout import from_tensor_axes, to_tensor_axes
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.encodings.json_entry import JsonEntry, UnknownKeys, describe
from lora_quant.encodings.json_text import (
    Section,
    document_text,
    list_text,
    object_text,
    value_text,
)
from lora_quant.encodings.kinds import BLOCKWISE, Granularity
from lora_quant.encodings.sections import Entry, collect, header_of
from lora_quant.errors import NOWHERE, EncodingsError, Where

VERSION = "2.0.0"
VERSIONS = (VERSION, "2.1.0")

SECTION = "encodings"
_SIGNED = {f"int{bits}": (True, bits) for bits in (2, 4, 8, 16, 32)}
_UNSIGNED = {f"uint{bits}": (False, bits) for bits in (2, 4, 8, 16)}
INTEGER_TYPES = {**_SIGNED, **_UNSIGNED}
"""output_dtype -> (signed, bits)."""

_KEYS = {"name", "output_dtype", "y_scale", "y_zero_point", "axis", "block_size"}
_LPBQ_KEYS = {"per_block_int_scale", "per_channel_float_scale"}


def read(document: Mapping[str, Any]) -> EncodingFile:
    """The content of a parsed document; EncodingsError with tensor and path if it is malformed."""
    unknown = UnknownKeys()
    encodings: dict[str, Encoding] = {}
    collect(_entries(document, unknown), encodings)
    return EncodingFile(
        document["version"],
        encodings,
        header=header_of(document, (SECTION,)),
        findings=unknown.findings(),
    )


def write(file: EncodingFile) -> dict[str, Any]:
    """The document of `file` as JSON values."""
    document: dict[str, Any] = json.loads("".join(text(file)))
    return document


def text(file: EncodingFile) -> Iterator[str]:
    """The document of `file`, piece by piece."""
    members: dict[str, str | Section] = {k: value_text(v) for k, v in file.header.items()}
    members[SECTION] = Section(
        keyed=False, entries=((n, entry_text(n, e)) for n, e in file.encodings.items())
    )
    members["version"] = value_text(file.version)
    return document_text(sorted(members.items()))


def output_dtype(encoding: Encoding) -> str:
    """The name of the type that the steps are stored in; 2.0.0 does not have all of them."""
    return f"{'int' if encoding.symmetric else 'uint'}{encoding.compressed_bits or encoding.bits}"


def check_expressible(encoding: Encoding, *, where: Where = NOWHERE) -> None:
    """EncodingsError if 2.0.0 has no entry for the encoding, or needs an axis it does not have."""
    if encoding.scale is None:
        raise EncodingsError(
            "encodings 2.0.0 has no entry for a tensor that stays in floating point",
            where=where,
            hint="leave the entry out",
        )
    dtype = output_dtype(encoding)
    if dtype not in INTEGER_TYPES:
        raise EncodingsError(
            f"encodings 2.0.0 has no type {dtype}",
            where=where,
            hint=f"known: {', '.join(INTEGER_TYPES)}",
        )
    if encoding.compressed_bits is not None and encoding.bits != 2 * encoding.compressed_bits:
        raise EncodingsError(
            f"encodings 2.0.0 decompresses {dtype} to twice its width, not to {encoding.bits} bits",
            where=where,
            hint="write version 1.0.0",
        )
    blockwise = encoding.granularity in BLOCKWISE
    needed = {
        "channel axis": encoding.granularity is not Granularity.PER_TENSOR
        and encoding.axis is None,
        "block axis": blockwise and (encoding.block_axis is None or encoding.ndim is None),
    }
    for what, missing in needed.items():
        if missing:
            raise EncodingsError(
                f"encodings 2.0.0 needs the {what}, and the encoding does not have it",
                where=where,
                hint="convert the file with the shapes of the graph's weights",
            )


def entry_text(name: str, encoding: Encoding) -> str:
    """One entry; EncodingsError if 2.0.0 cannot express the encoding or an axis is not known."""
    check_expressible(encoding, where=Where(tensor=name))
    members = {"name": value_text(name), "output_dtype": value_text(output_dtype(encoding))}
    if encoding.granularity in BLOCKWISE:
        members["axis"] = value_text(encoding.block_axis)
        members["block_size"] = value_text(encoding.block_size)
    elif encoding.axis is not None:
        members["axis"] = value_text(encoding.axis)
    scale = encoding.stored_scale
    if encoding.block_scale is not None:
        blocks = _nested(encoding.block_scale, encoding)
        members["per_block_int_scale"] = list_text(blocks, whole=True)
        members["per_channel_float_scale"] = list_text(_nested(scale, encoding))
        return object_text(members)
    members["y_scale"] = list_text(_nested(scale, encoding))
    zero_point = _nested(encoding.zero_point, encoding)
    if zero_point.any():
        whole = bool((zero_point % 1 == 0).all())
        members["y_zero_point"] = list_text(zero_point, whole=whole)
    return object_text(members)


def _nested(array: NDArray[np.float64], encoding: Encoding) -> NDArray[np.float64]:
    """An array of the encoding in the weight's own axes; unchanged if there are no blocks."""
    axis, block_axis, ndim = encoding.axis, encoding.block_axis, encoding.ndim
    if axis is None or block_axis is None or ndim is None:
        return array
    by_channel = array if array.ndim == 2 else array[:, np.newaxis]
    return to_tensor_axes(by_channel, axis, block_axis, ndim)


def _entries(document: Mapping[str, Any], unknown: UnknownKeys) -> Iterator[Entry]:
    section = document.get(SECTION)
    if not isinstance(section, list):
        raise EncodingsError(
            f"expected a list of entries, got {describe(section)}", where=Where(field=SECTION)
        )
    for index, value in enumerate(section):
        path = f"{SECTION}[{index}]"
        name = JsonEntry.of(value, tensor=None, path=path).text("name")
        yield name, path, _read_entry(JsonEntry(value, name, path), unknown)


def _read_entry(entry: JsonEntry, unknown: UnknownKeys) -> Encoding:
    dtype = entry.text("output_dtype")
    if dtype not in INTEGER_TYPES:
        entry.fail(
            f"output_dtype {dtype!r} is not supported",
            key="output_dtype",
            hint=f"known: {', '.join(INTEGER_TYPES)}; a tensor that stays in float has no entry",
        )
    signed, bits = INTEGER_TYPES[dtype]
    if entry.members.keys() & _LPBQ_KEYS:
        unknown.note(entry.members.keys() - _KEYS - _LPBQ_KEYS, entry.tensor)
        return _read_lpbq(entry, signed, bits)
    unknown.note(entry.members.keys() - _KEYS, entry.tensor)
    if isinstance(entry.get("y_scale"), Mapping):
        entry.fail(
            "y_scale is an object: double quantization (2.1.0) is not supported",
            key="y_scale",
            hint="export the encodings with plain block scales",
        )
    scale = entry.numbers("y_scale")
    zero_point = _zero_point(entry, scale)
    offset = -zero_point - (2.0 ** (bits - 1) if signed else 0.0)
    if "block_size" in entry.members and entry.members["block_size"] is not None:
        block_size = entry.integer("block_size")
        block_axis = _block_axis(entry, scale)
        scale, axis = entry.build(lambda: from_tensor_axes(scale, block_axis))
        flat_offset, _ = from_tensor_axes(offset, block_axis)
        ndim = offset.ndim
        return entry.build(
            lambda: Encoding.per_block(
                scale,
                flat_offset,
                bits=bits,
                symmetric=signed,
                block_size=block_size,
                axis=axis,
                block_axis=block_axis,
                ndim=ndim,
            )
        )
    if scale.ndim == 0:
        return entry.build(lambda: Encoding.per_tensor(scale, offset, bits=bits, symmetric=signed))
    channel_axis = entry.integer("axis")
    return entry.build(
        lambda: Encoding.per_channel(scale, offset, bits=bits, symmetric=signed, axis=channel_axis)
    )


def _read_lpbq(entry: JsonEntry, signed: bool, bits: int) -> Encoding:
    blocks = entry.numbers("per_block_int_scale")
    scale = entry.numbers("per_channel_float_scale")
    block_axis = _block_axis(entry, blocks)
    expected = tuple(1 if i == block_axis else n for i, n in enumerate(blocks.shape))
    if scale.shape != expected:
        entry.fail(
            f"expected shape {list(expected)}, got {list(scale.shape)}",
            key="per_channel_float_scale",
        )
    if not signed or _zero_point(entry, blocks).any():
        entry.fail("LPBQ is signed with a zero point of 0", key="output_dtype")
    block_size = entry.integer("block_size")
    by_channel, axis = entry.build(lambda: from_tensor_axes(blocks, block_axis))
    return entry.build(
        lambda: Encoding.lpbq(
            scale.ravel(),
            by_channel,
            compressed_bits=bits,
            bits=2 * bits,
            block_size=block_size,
            axis=axis,
            block_axis=block_axis,
            ndim=blocks.ndim,
        )
    )


def _zero_point(entry: JsonEntry, scale: NDArray[np.float64]) -> NDArray[np.float64]:
    if entry.members.get("y_zero_point") is None:
        return np.zeros(scale.shape)
    zero_point = entry.numbers("y_zero_point")
    if zero_point.ndim == 0:
        return np.broadcast_to(zero_point, scale.shape)
    if zero_point.shape != scale.shape:
        entry.fail(
            f"shape {list(zero_point.shape)} is not that of the scales, {list(scale.shape)}",
            key="y_zero_point",
        )
    return zero_point


def _block_axis(entry: JsonEntry, blocks: NDArray[np.float64]) -> int:
    axis = entry.integer("axis")
    if blocks.ndim < 2 or not -blocks.ndim <= axis < blocks.ndim:
        entry.fail(
            f"axis {axis} is not an axis of block scales of shape {list(blocks.shape)}", key="axis"
        )
    return axis % blocks.ndim
