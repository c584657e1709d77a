"""A number that tells one emitted graph, with its base, from another.

The first 31 bits of a SHA-256 over the bytes of the graph file, and over name, size and sampled
hash of the base's data files. Every adapter file carries it as its model version, which the engines
store and do not compare.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from lora_quant.graph.files.data_files import sampled_sha256
from lora_quant.graph.files.external_data import DataFile

_BITS = 31  # a signed 32-bit number of the adapter format


def fingerprint(graph: bytes, data_files: Iterable[DataFile]) -> int:
    """The number, in [0, 2**31). Raises InputMissingError if a data file cannot be read."""
    digest = hashlib.sha256(hashlib.sha256(graph).digest())
    for file in data_files:
        digest.update(f"{file.location}\0{file.size}\0{sampled_sha256(file.path)}\n".encode())
    return int.from_bytes(digest.digest()[:4], "big") >> (32 - _BITS)
