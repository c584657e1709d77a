"""A fuzz target: a reader, the files to begin with, and the kinds of damage that reach it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from lora_quant.findings import Finding

Mutate = Callable[[bytes, Sequence[bytes], Random], bytes]
Outcome = Iterable[Finding] | None


@dataclass(frozen=True)
class Target:
    """One reader.

    seeds: makes the files to begin with, given a folder to work in. run: gives bytes to the reader;
    its folder is the target's own, and holds what was made with the seeds. weight: its share of the
    inputs, by how fast it is.
    """

    name: str
    seeds: Callable[[Path], Sequence[bytes]]
    run: Callable[[bytes, Path], Outcome]
    mutators: tuple[Mutate, ...]
    weight: float = 1.0

    def input(self, seeds: Sequence[bytes], seed: int, index: int) -> bytes:
        """Input number `index` of a seed: always the same bytes."""
        random = Random(f"{self.name}:{seed}:{index}")
        return random.choice(self.mutators)(random.choice(seeds), seeds, random)


def put(data: bytes, folder: Path, name: str) -> Path:
    """The input as a file."""
    path = folder / name
    path.write_bytes(data)
    return path
