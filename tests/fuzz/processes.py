"""One process for each target, since an input may end it; the parent says which input that was."""

from __future__ import annotations

import json
import mmap
import os
import struct
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any

from tests.fuzz.runner import SECONDS, Defect, Tally, bound_memory, run_inputs
from tests.fuzz.target import Target

ROOT = Path(__file__).parents[2]
_POLL = 0.1
_STUCK = 4 * SECONDS
"""Without a new input for so long, the process hangs in code that hears no signal."""
_STARTUP = 120.0


def in_process(target: Target, *, seed: int, inputs: int | None, seconds: float | None) -> Tally:
    """Run a target in processes of its own, a new one after each that ended by an input."""
    tally = Tally(target.name)
    deadline = None if seconds is None else time.monotonic() + seconds
    start = 0
    while (inputs is None or start < inputs) and (deadline is None or time.monotonic() < deadline):
        left = None if deadline is None else deadline - time.monotonic()
        part, reached = _one_process(target, seed, start, inputs, left)
        tally.inputs += part.inputs
        tally.seconds += part.seconds
        tally.slowest = max(tally.slowest, part.slowest)
        for defect in part.defects:
            tally.add(defect)
        if reached is None:
            break
        start = reached + 1
    return tally


def _one_process(
    target: Target, seed: int, start: int, inputs: int | None, seconds: float | None
) -> tuple[Tally, int | None]:
    """What one process did; the number of the input that ended it, None if it ended by itself."""
    with tempfile.TemporaryDirectory(prefix="lora-quant-fuzz-") as name:
        folder = Path(name)
        (folder / "work").mkdir()
        place = folder / "index"
        place.write_bytes(struct.pack("<q", start - 1))
        command = [sys.executable, "-m", "tests.fuzz.processes", target.name, name]
        command += [str(seed), str(start), str(inputs or 0), str(seconds or 0.0)]
        begun = time.monotonic()
        with (folder / "stderr").open("wb") as errors:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=errors, stderr=errors, env=dict(os.environ)
            )
            stuck = _watch(process, place)
        tally = Tally(target.name)
        if (folder / "defects").exists():
            lines = (folder / "defects").read_text(encoding="utf-8").splitlines()
            tally.defects = [_defect(json.loads(line)) for line in lines]
        if process.returncode == 0:
            numbers = json.loads((folder / "tally").read_bytes())
            tally.inputs, tally.seconds, tally.slowest = numbers
            return tally, None
        reached = _index(place)
        detail = (folder / "stderr").read_text(encoding="utf-8", errors="replace")[-6000:]
        if reached < start:
            raise RuntimeError(f"{target.name} does not start:\n{detail}")
        tally.inputs, tally.seconds = reached + 1 - start, time.monotonic() - begun
        how = "hang outside of Python" if stuck else f"end of process, {process.returncode}"
        data = target.input(target.seeds(folder / "work"), seed, reached)
        tally.defects.append(Defect(target.name, seed, reached, how, detail, data))
        return tally, reached


def _watch(process: subprocess.Popen[bytes], place: Path) -> bool:
    """Wait for the end; kill a process that hangs, and say so."""
    last, since, allowed = _index(place), time.monotonic(), _STARTUP
    while process.poll() is None:
        time.sleep(_POLL)
        reached = _index(place)
        if reached != last:
            last, since, allowed = reached, time.monotonic(), _STUCK
        elif time.monotonic() - since > allowed:
            process.kill()
            process.wait()
            return True
    return False


def _index(place: Path) -> int:
    return int(struct.unpack("<q", place.read_bytes())[0])


def _child(name: str, folder: Path, seed: int, start: int, inputs: int, seconds: float) -> None:
    from tests.fuzz.targets import TARGETS

    target = TARGETS[name]
    defects = (folder / "defects").open("a", encoding="utf-8", buffering=1)
    with defects, (folder / "index").open("r+b") as file, mmap.mmap(file.fileno(), 8) as place:
        # what loads late, and threads that stay, are there before the bound is set
        run_inputs(target, folder / "work", iter(range(3)), seed=seed - 1)
        bound_memory()
        tally = run_inputs(
            target,
            folder / "work",
            iter(range(start, inputs)) if inputs else count(start),
            seed=seed,
            deadline=time.monotonic() + seconds if seconds else None,
            before=lambda index: struct.pack_into("<q", place, 0, index),
            found=lambda defect: defects.write(_line(defect)),
        )
    numbers = [tally.inputs, tally.seconds, tally.slowest]
    (folder / "tally").write_text(json.dumps(numbers), encoding="utf-8")


def _line(defect: Defect) -> str:
    return json.dumps({**vars(defect), "data": defect.data.hex()}) + "\n"


def _defect(document: dict[str, Any]) -> Defect:
    return Defect(**{**document, "data": bytes.fromhex(document["data"])})


if __name__ == "__main__":
    name, folder, seed, start, inputs, seconds = sys.argv[1:]
    _child(name, Path(folder), int(seed), int(start), int(inputs), float(seconds))
