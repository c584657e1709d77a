"""Damage inside of containers that are whole: a safetensors header, the pickle of a zip archive.

What is around the damage fits it, so that it reaches the code behind the first checks.
"""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
from collections.abc import Sequence
from random import Random

from tests.adapters.formats import torch_bytes
from tests.fuzz.bytes_mutator import mutate_bytes
from tests.fuzz.tree_mutator import parse_tree, tree_mutator

_damaged_header = tree_mutator(lambda data: parse_tree(data.decode("utf-8", "replace")))
_PICKLED = (
    torch_bytes.MARK,
    torch_bytes.STOP,
    torch_bytes.REDUCE,
    torch_bytes.TUPLE,
    torch_bytes.EMPTY_DICT,
    torch_bytes.number(-1),
    torch_bytes.number(2**62),
    torch_bytes.text("x"),
    torch_bytes.name("os", "system") + torch_bytes.text("true") + b"\x85R",
    torch_bytes.name("builtins", "eval"),
    torch_bytes.sizes([2**40, 2**40, 0]),
    torch_bytes.storage("FloatStorage", "0", 4),
    torch_bytes.tensor("FloatStorage", "0", 4, 0, [2**31] * 2, [0, 0]),
    b"q\x00h\x00",
    b"r\xff\xff\xff\x7f",
    b"\x94",
    b"]h\x00a",
    b"\x8a\xff" + b"\xff" * 255,
    b"\x95" + b"\xff" * 8,
    b"\x93",
    b"b",
    b"\x81",
    b"0",
    b"2",
)


def mutate_npz(data: bytes, donors: Sequence[bytes], random: Random) -> bytes:
    """One array damaged, renamed or repeated, in an archive that is whole."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    number = random.randrange(len(entries))
    name, content = entries[number]
    if random.random() < 0.7:
        content = mutate_bytes(content, donors, random)
    name = random.choice([name, name, name.removesuffix(".npy"), "x", "../x.npy", "\u00e9.npy"])
    entries[number] = (name, content)
    how = random.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    written = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(written, "w", how) as archive:
        warnings.simplefilter("ignore")  # of names that occur twice
        for name, content in entries:
            archive.writestr(name, content)
    return written.getvalue()


def mutate_safetensors(data: bytes, donors: Sequence[bytes], random: Random) -> bytes:
    """The header changed as a tree or as text, with a length that fits it most of the time."""
    length = struct.unpack_from("<Q", data)[0]
    header, values = data[8 : 8 + length], data[8 + length :]
    if random.random() < 0.5:
        header = _damaged_header(header, donors, random)
    elif random.random() < 0.5:
        header = _shifted(header, random)
    else:
        header = mutate_bytes(header, donors, random)
    stated = len(header) if random.random() < 0.9 else random.getrandbits(random.randrange(64))
    return struct.pack("<Q", stated) + header + values


def _shifted(header: bytes, random: Random) -> bytes:
    """Places or shapes of one tensor a little beside the right ones."""
    document = json.loads(header)
    names = [name for name in document if name != "__metadata__"]
    if names:
        entry = document[random.choice(names)]
        numbers = entry[random.choice(("shape", "data_offsets"))]
        if numbers:
            at = random.randrange(len(numbers))
            numbers[at] += random.choice((-numbers[at], -1, 1, 4, 2**31, 2**62, -(2**40)))
    return json.dumps(document).encode()


def mutate_pickle(data: bytes, donors: Sequence[bytes], random: Random) -> bytes:
    """A pickle with opcodes put in or in place of others."""
    content = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 3))):
        at = random.randrange(len(content) + 1)
        step = random.choice(_PICKLED) * random.choice((1, 1, 1, 3, 300))
        content[at : at + random.choice((0, 0, 1, len(step)))] = step
    damaged = bytes(content)
    return mutate_bytes(damaged, donors, random) if random.random() < 0.2 else damaged


def mutate_torch_zip(data: bytes, donors: Sequence[bytes], random: Random) -> bytes:
    """A sound archive around a damaged pickle, or around other storages."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    changed = "archive/data.pkl" if random.random() < 0.8 else random.choice(list(entries))
    if changed.endswith(".pkl"):
        entries[changed] = mutate_pickle(entries[changed], donors, random)
    elif random.random() < 0.5:
        del entries[changed]
    else:
        entries[changed] = mutate_bytes(entries[changed], donors, random)
    sink = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if random.random() < 0.02 else zipfile.ZIP_STORED
    with zipfile.ZipFile(sink, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return sink.getvalue()
