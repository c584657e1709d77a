"""The header of a safetensors file: what it may say, and everything it may not.

The layout is public (safetensors' README, "Format"): 8 bytes little-endian header length n, n bytes
of JSON, then the tensors' bytes. Stricter than the library in one point that matters for adapters:
a name that occurs twice is refused, where the library keeps one of the two without a word.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from lora_quant.errors import AdapterError, Where, short

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000

_BITS: Mapping[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E4M3": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8,
    "I8": 8,
    "U8": 8,
    "BF16": 16,
    "F16": 16,
    "I16": 16,
    "U16": 16,
    "F32": 32,
    "I32": 32,
    "U32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
_MAX_DIMENSIONS = 32
_MAX_SIZE = 2**63 - 1
_METADATA = "__metadata__"
_COPY_AGAIN = "the file is cut short or damaged; copy or download it again"
_TENSOR_FIELDS = frozenset({"dtype", "shape", "data_offsets"})


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of one tensor. `offset` counts from the start of the file, in bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True)
class Header:
    """Every tensor in file order, and the free text that the writer put beside them."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


def header_length(prefix: bytes, file_size: int, file: Path) -> int:
    """Length n of the JSON header from the first 8 bytes; AdapterError unless it fits the file."""
    where = Where(file=file)
    if len(prefix) < LENGTH_BYTES:
        raise AdapterError(
            f"the file ends within its length field: got {len(prefix)} bytes, "
            f"expected at least {LENGTH_BYTES}",
            where=where,
            hint=_COPY_AGAIN,
        )
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise AdapterError(
            f"the header claims {length} bytes, expected at most {MAX_HEADER_BYTES}",
            where=where,
            hint="this is probably not a safetensors file; save the adapter as safetensors",
        )
    if LENGTH_BYTES + length > file_size:
        raise AdapterError(
            f"the file ends within its header: got {file_size} bytes, "
            f"expected at least {LENGTH_BYTES + length}",
            where=where,
            hint=_COPY_AGAIN,
        )
    return length


def parse_header(text: bytes, file_size: int, file: Path) -> Header:
    """Parse and check the JSON header `text` of a file of `file_size` bytes.

    The tensors must cover the rest of the file exactly: no gap, no overlap, nothing left over.
    Raises AdapterError naming the tensor, and nothing else, whatever the bytes are.
    """
    document = _parse_object(text, file)
    given = document.pop(_METADATA, None)  # some writers say null for none
    metadata = _check_metadata({} if given is None else given, file)
    start = LENGTH_BYTES + len(text)
    infos = {name: _tensor_info(name, entry, start, file) for name, entry in document.items()}
    ordered = dict(sorted(infos.items(), key=lambda item: (item[1].offset, item[1].size)))
    _check_layout(ordered, start, file_size, file)
    return Header(MappingProxyType(ordered), MappingProxyType(metadata))


def _parse_object(text: bytes, file: Path) -> dict[str, Any]:
    where = Where(file=file)
    try:
        document = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=lambda pairs: _unique(pairs, file),
            parse_constant=lambda constant: _refuse_constant(constant, file),
        )
    except (ValueError, RecursionError) as error:
        raise AdapterError(
            f"the header is not JSON text: {error}",
            where=where,
            hint="this is probably not a safetensors file; save the adapter as safetensors",
        ) from error
    if not isinstance(document, dict):
        raise AdapterError(
            f"the header is a JSON {type(document).__name__}, expected an object", where=where
        )
    return document


def _unique(pairs: list[tuple[str, Any]], file: Path) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise AdapterError(
                f"the header names {short(_printable(name))} twice: which one is meant?",
                where=Where(file=file, tensor=_printable(name)),
                hint="save the adapter again with one tensor of each name",
            )
        result[name] = value
    return result


def _refuse_constant(constant: str, file: Path) -> NoReturn:
    raise AdapterError(f"the header contains {constant}, which is not JSON", where=Where(file=file))


def _check_metadata(metadata: Any, file: Path) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise AdapterError(
            f"{_METADATA} of the header is not an object of strings",
            where=Where(file=file, field=_METADATA),
        )
    return metadata


def _tensor_info(name: str, entry: Any, start: int, file: Path) -> TensorInfo:
    where = Where(file=file, tensor=_printable(name))
    if _printable(name) != name:
        raise AdapterError("a tensor's name is not valid Unicode", where=where)
    if not isinstance(entry, dict) or entry.keys() != _TENSOR_FIELDS:
        got = short(sorted(entry)) if isinstance(entry, dict) else type(entry).__name__
        raise AdapterError(
            f"the header's entry of a tensor holds {got}, expected {sorted(_TENSOR_FIELDS)}",
            where=where,
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise AdapterError(
            f"unknown dtype {short(dtype)}, expected one of {', '.join(sorted(_BITS))}",
            where=where,
        )
    if not _is_size_list(shape, _MAX_DIMENSIONS):
        raise AdapterError(
            f"shape is {short(shape)}, expected a list of at most {_MAX_DIMENSIONS} sizes "
            "(whole numbers from 0)",
            where=where,
        )
    if not _is_size_list(offsets, 2) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise AdapterError(
            f"data_offsets is {short(offsets)}, expected [begin, end] with begin <= end",
            where=where,
        )
    begin, end = offsets
    bits = math.prod(shape) * _BITS[dtype]
    if bits != 8 * (end - begin):
        raise AdapterError(
            f"{dtype} of shape {short(shape)} takes {short(bits)} bits, "
            f"but data_offsets give it {8 * (end - begin)}",
            where=where,
        )
    return TensorInfo(dtype, tuple(shape), start + begin, end - begin)


def _check_layout(tensors: Mapping[str, TensorInfo], start: int, size: int, file: Path) -> None:
    expected = start
    for name, info in tensors.items():
        if info.offset != expected:
            problem = "overlaps the tensor before it" if info.offset < expected else "leaves a gap"
            raise AdapterError(
                f"the tensor {problem}: it begins at byte {short(info.offset)}, "
                f"expected {short(expected)}",
                where=Where(file=file, tensor=name),
            )
        expected += info.size
    if expected != size:
        cut = expected > size
        raise AdapterError(
            f"the file has {size} bytes, expected {expected} from its header",
            where=Where(file=file),
            hint=_COPY_AGAIN if cut else "bytes follow the last tensor; save the adapter again",
        )


def _is_size_list(value: Any, most: int) -> bool:
    """Bounded in length and in value, so that no later arithmetic can be made expensive."""
    return (
        isinstance(value, list)
        and len(value) <= most
        and all(type(v) is int and 0 <= v <= _MAX_SIZE for v in value)
    )


def _printable(name: str) -> str:
    """JSON can escape half a surrogate pair, which no console or file can take."""
    return name.encode("utf-8", "replace").decode("utf-8")
