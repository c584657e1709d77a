"""What no tool can save: read every adapter once, write and hash as many bytes as a pack has.

    python benchmarks/floor.py CASE BYTES [PATTERN...]

Files of the case that have one of the patterns are hashed as well. Plain Python, no array library:
the floor that a build is held against.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

_CHUNK = 1 << 20


def main(case: Path, size: int, patterns: list[str]) -> None:
    """Read the adapters of `case`; write `size` bytes into it, hash them and remove them.

    Every file of `case` that has one of the `patterns` is hashed before.
    """
    buffer = bytearray(_CHUNK)
    for path in sorted(path for pattern in patterns for path in case.glob(pattern)):
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(memoryview(buffer)[:count])
    for path in sorted(case.glob("adapters/*/*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    block = memoryview(buffer)
    digest = hashlib.sha256()
    target = case / "floor.bin"
    with target.open("wb", buffering=0) as file:
        for start in range(0, size, _CHUNK):
            part = block[: size - start]
            file.write(part)
            digest.update(part)
    target.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
