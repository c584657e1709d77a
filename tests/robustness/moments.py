"""Commands ended at random moments: what they write is the old output or the new one.

    python -m tests.robustness.moments build-force --seed 7 --moments 200 --signal KILL

Every moment forks a child that has everything imported. Half of the moments are times, the others
are steps: before the n-th file that is opened, made, renamed, removed or flushed. After each moment
the visible files are those from before or those of an undisturbed run; a next run succeeds, and
leaves nothing hidden. Prints one line for each moment that broke this, with its seed.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lora_quant.cli.main import run
from lora_quant.config import renames
from lora_quant.targets.files.build_journal import BuildJournal
from tests.robustness.command_cases import (
    CASES,
    Case,
    Tree,
    all_files,
    hidden_in,
    prepare,
    restore,
    tree_of,
)

_SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "INT": signal.SIGINT}
_AUDITED = ("open", "os.", "shutil.")
_NEXT_RUN_EVERY = 5
_INTERRUPTED = 130


class Steps:
    """Counts what this process does with files below the current folder; acts before the n-th."""

    def __init__(self, number: int | None, act: Callable[[], object]) -> None:
        self.count = 0
        self._number = number
        self._act = act
        self._here = str(Path.cwd())

    def watch(self) -> None:
        """From now on."""
        sys.addaudithook(self._audit)
        for module, name in ((os, "fsync"), (os, "write"), (os, "pread")):
            setattr(module, name, self._counted(getattr(module, name)))
        swap = renames._function()
        if swap is not None:
            counted = self._counted(swap)
            renames._function = lambda: counted  # type: ignore[assignment]

    def _audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if not event.startswith(_AUDITED) or not arguments:
            return
        path = arguments[0]
        if isinstance(path, (str, bytes, os.PathLike)):
            text = os.fsdecode(path)
            if text.startswith(self._here) or not text.startswith("/"):
                self._tick()

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self._tick()
            result = function(*arguments)
            self._tick()
            return result

        return counted

    def _tick(self) -> None:
        self.count += 1
        if self.count == self._number:
            self._act()


def child(command: Sequence[str], number: int | None, what: signal.Signals) -> int:
    """Fork a child that runs `command`, and ends itself before its n-th step; its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        Steps(number, lambda: os.kill(os.getpid(), what)).watch()
        code = run(command)
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """Wait for a child; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def count_steps(command: Sequence[str]) -> tuple[int, float]:
    """How many steps an undisturbed run takes, and how many seconds."""
    reader, writer = os.pipe()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            null = os.open(os.devnull, os.O_RDWR)
            for standard in (0, 1, 2):
                os.dup2(null, standard)
            steps = Steps(None, lambda: None)
            steps.watch()
            code = run(command)
            os.write(writer, str(steps.count).encode())
        finally:
            os._exit(code)
    code = ended(pid)
    seconds = time.monotonic() - started
    if code != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {code}")
    os.close(writer)
    with os.fdopen(reader) as told:
        return int(told.read()), seconds


def main() -> int:
    """The number of moments that broke a promise, at most 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=sorted(CASES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--moments", type=int, default=30)
    parser.add_argument("--signal", choices=sorted(_SIGNALS), default="KILL")
    parser.add_argument("--only", type=int, help="Repeat this moment alone.")
    given = parser.parse_args()
    case = CASES[given.case]
    here = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="lora-quant-moments-") as name:
        os.chdir(name)
        try:
            problems = _run(case, Path(name).resolve(), given)
        finally:
            os.chdir(here)
    for moment, problem in problems:
        again = f"{given.case} --seed {given.seed} --signal {given.signal} --only {moment}"
        sys.stdout.write(f"{again}: {problem}\n")
    return 1 if problems else 0


def _run(case: Case, folder: Path, given: argparse.Namespace) -> list[tuple[int, str]]:
    prepare(folder, case)
    before = all_files(folder)
    if run(case.command) != 0:  # here, so that children have everything imported
        raise RuntimeError("the command does not run")
    after = all_files(folder)
    restore(folder, before)
    count, seconds = count_steps(case.command)
    if before == after or all_files(folder) != after:
        raise RuntimeError("the command changes nothing, or not always the same")
    problems = []
    ends = {"old": 0, "new": 0}
    for moment in range(given.moments):
        if given.only in (None, moment):
            restore(folder, before)
            chance = random.Random(f"{given.seed} {moment}")
            problem = _moment(case, folder, (before, after), (count, seconds), chance, given, ends)
            if problem is not None:
                problems.append((moment, problem))
    sys.stdout.write(f"{given.case} {given.signal}: {count} steps, {seconds:.2f} s, {ends}\n")
    return problems


def _moment(
    case: Case,
    folder: Path,
    states: tuple[Tree, Tree],
    run_of: tuple[int, float],
    chance: random.Random,
    given: argparse.Namespace,
    ends: dict[str, int],
) -> str | None:
    what = _SIGNALS[given.signal]
    count, seconds = run_of
    code = _end_it(case.command, what, count, seconds, chance)
    expected = {-what} if what is signal.SIGKILL else {_INTERRUPTED, -what}
    if code not in {*expected, 0}:
        return f"the command ended with {code}"
    left = hidden_in(folder)
    if code in (_INTERRUPTED, 0) and left:
        return f"hidden files are left: {left}"
    if not case.waits or code in (_INTERRUPTED, 0):
        problem = _neither(folder, states)
        if problem is not None:
            return problem
    ends["new" if tree_of(folder) == states[1] else "old"] += 1
    output = case.folder_written
    if left and output is not None and chance.randrange(_NEXT_RUN_EVERY):
        # What a next run does first: much quicker than the whole of it.
        BuildJournal(folder / output).close()
        if hidden_in(folder):
            return f"the recovery left hidden files: {hidden_in(folder)}"
        return _neither(folder, states)
    if left or chance.randrange(_NEXT_RUN_EVERY) == 0:
        force = () if "--force" in case.command else ("--force",)
        code = ended(child((*case.command, *force), None, signal.SIGKILL))
        if code != 0:
            return f"the next run ended with {code}"
        if hidden_in(folder):
            return f"the next run left hidden files: {hidden_in(folder)}"
        if tree_of(folder) != states[1]:
            return f"the next run gave other files: {_differing(tree_of(folder), states[1])}"
    return None


def _end_it(
    command: Sequence[str], what: signal.Signals, count: int, seconds: float, chance: random.Random
) -> int:
    if chance.random() < 0.5:
        # Half of them near the end, where names change.
        last = chance.choice([1, max(1, count - 60)])
        return ended(child(command, chance.randint(last, count), what))
    pid = child(command, None, what)
    time.sleep(chance.uniform(0, 1.1 * seconds))
    os.kill(pid, what)
    return ended(pid)


def _neither(folder: Path, states: tuple[Tree, Tree]) -> str | None:
    seen = tree_of(folder)
    if seen in states:
        return None
    return f"neither the old files nor the new ones: {_differing(seen, states[1])}"


def _differing(seen: Tree, wanted: Tree) -> list[str]:
    return sorted(n for n in seen.keys() | wanted.keys() if seen.get(n) != wanted.get(n))


if __name__ == "__main__":
    sys.exit(main())
