"""Giving a target its inputs under bounds of time and memory, and keeping what goes wrong.

A defect is anything but a value, findings or a LoraQuantError: another exception, more time than
`SECONDS` for one input, more memory than `MEMORY` beyond what the process had, or the end of the
process. Inputs are numbered, so that one number and the seed give the input again.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from tests.fuzz.outcome import settle
from tests.fuzz.target import Target

SECONDS = 5.0
"""For one input of at most 1 MiB: a hundred times what the slowest one was measured to take."""
_KEPT = 3
MEMORY = 1 << 30
"""Address space beyond that of the idle process, most of which threads reserve and do not use."""


class TooSlowError(BaseException):
    """No subclass of Exception: nothing on the way may take it for an error of a file."""


@dataclass(frozen=True)
class Defect:
    """One input that went wrong; `kind` is the same for inputs that fail in the same place."""

    target: str
    seed: int
    index: int
    kind: str
    detail: str
    data: bytes = field(repr=False)


@dataclass
class Tally:
    """What became of the inputs of one target; of defects of one kind the first few are kept."""

    target: str
    inputs: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    defects: list[Defect] = field(default_factory=list)

    def add(self, defect: Defect) -> bool:
        """Count a defect; whether it is one of those that are kept."""
        self.kinds[defect.kind] += 1
        if self.kinds[defect.kind] > _KEPT:
            return False
        self.defects.append(defect)
        return True


def run_inputs(
    target: Target,
    folder: Path,
    indexes: Iterator[int],
    *,
    seed: int,
    deadline: float | None = None,
    before: Callable[[int], object] = lambda _: None,
    found: Callable[[Defect], object] = lambda _: None,
) -> Tally:
    """Run inputs until they or the time (`time.monotonic()`) end.

    `before` hears the number of each input before it runs, `found` the defects that are kept:
    what they note survives the process.
    """
    tally = Tally(target.name)
    seeds = target.seeds(folder)
    started = time.monotonic()
    for index in indexes:
        if deadline is not None and time.monotonic() > deadline:
            break
        before(index)
        data = target.input(seeds, seed, index)
        begun = time.monotonic()
        problem = _problem(target, data, folder)
        tally.slowest = max(tally.slowest, time.monotonic() - begun)
        tally.inputs += 1
        if problem is not None:
            defect = Defect(target.name, seed, index, *problem, data)
            if tally.add(defect):
                found(defect)
    tally.seconds = time.monotonic() - started
    return tally


def _problem(target: Target, data: bytes, folder: Path) -> tuple[str, str] | None:
    try:
        with _within_seconds(SECONDS):
            settle(lambda: target.run(data, folder))
    except (Exception, TooSlowError) as error:
        return _place(error), "".join(traceback.format_exception(error))[-6000:]
    return None


def _place(error: BaseException) -> str:
    """The exception and the innermost place in our own code."""
    frames = traceback.extract_tb(error.__traceback__)
    text = str(error) if type(error).__name__ == "InternalError" else ""
    if text:
        return f"InternalError: {text.strip().splitlines()[-1][:80]} {_last_own(text)}"
    own = [f for f in frames if "lora_quant" in Path(f.filename).parts] or frames
    last = own[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno} in {last.name}"


@contextlib.contextmanager
def _within_seconds(seconds: float) -> Iterator[None]:
    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TooSlowError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def bound_memory(extra: int = MEMORY) -> None:
    """Let this process have `extra` bytes of address space beyond what it has now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + extra
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def _last_own(text: str) -> str:
    """The innermost line of a traceback's text that is in our own code."""
    lines = [line.strip() for line in text.splitlines() if "lora_quant/" in line]
    return lines[-1].rsplit("lora_quant/")[-1] if lines else ""
