"""Measure lora-quant as whole processes and write the figures into benchmarks/README.md.

    python benchmarks/run.py              all cases, five runs each, and all tables
    python benchmarks/run.py 1b 70b       some cases, nothing written
    python benchmarks/run.py switching    a table (see tables.py), written
    python benchmarks/run.py --list       their names

Every run of a build is followed by a run of its floor (see floor.py), so that the difference and
the ratio hold when the machine's speed drifts. One run of each comes first and does not count.
Cases are made when they are missing (see make_case.py) and stay in benchmarks/data.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cases import CASES, Case
from measure import CommandFailedError, Spread, Usage, run
from tables import TABLES, write_section

HERE = Path(__file__).parent
DATA = HERE / "data"
README = HERE / "README.md"
OUTPUT = "out"
_PACKAGES = ("click", "numpy", "onnx", "protobuf", "pydantic", "PyYAML", "ml_dtypes", "safetensors")
_IMPORTS = "import click, ml_dtypes, numpy, onnx, pydantic, yaml"


@dataclass(frozen=True)
class Result:
    """Runs of one build, and of the floor after each of them."""

    case: Case
    builds: list[Usage]
    floors: list[Usage]
    written: int

    def row(self) -> str:
        """One line of the table."""
        pairs = list(zip(self.builds, self.floors, strict=True))
        cells = (
            self.case.title,
            Spread.of([b.cpu for b in self.builds]).text(2),
            Spread.of([f.cpu for f in self.floors]).text(2),
            Spread.of([b.cpu - f.cpu for b, f in pairs]).text(2),
            Spread.of([b.cpu / f.cpu for b, f in pairs]).text(1),
            Spread.of([b.wall for b in self.builds]).text(2),
            Spread.of([b.peak for b in self.builds]).text(0),
            f"{self.written / 1e6:.0f}",
            self.case.asks or "-",
        )
        return "| " + " | ".join(cells) + " |"


def main() -> int:
    """Run what the command line asks for; 1 if something failed."""
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(f"{item.name:10} {item.title}" for item in (*CASES, *TABLES)))
        return 0
    asked = set(arguments.cases)
    if unknown := asked - {item.name for item in (*CASES, *TABLES)}:
        parser.error(f"no such case: {', '.join(sorted(unknown))}; see --list")
    failed = False
    cases = [case for case in CASES if case.name in asked or not asked]
    if cases:
        failed = not _run_cases(cases, arguments.runs, write=not asked)
    for table in TABLES:
        if table.name in asked or not asked:
            print(f"{table.name} ...", file=sys.stderr, flush=True)
            try:
                text = "\n".join(_machine()) + "\n- " + table.text(arguments.olive)
            except CommandFailedError as error:
                failed = True
                print(f"{table.name} failed: {error}", file=sys.stderr)
            else:
                print(text)
                write_section(README, table.name, text)
    return int(failed)


def _run_cases(cases: list[Case], runs: int, *, write: bool) -> bool:
    """Print the figures, and write them if all cases could be built; whether they could."""
    lines = [*_machine(), "", *_small_commands(runs), "", *_head()]
    good = True
    for case in cases:
        print(f"{case.name} ...", file=sys.stderr, flush=True)
        try:
            lines.append(_measured(case, runs).row())
        except CommandFailedError as error:
            good = False
            print(f"{case.name} failed: {error}", file=sys.stderr)
    text = "\n".join(lines) + "\n"
    print(text)
    if write and good:
        write_section(README, "figures", text)
    return good


def _measured(case: Case, runs: int) -> Result:
    folder = DATA / case.data
    if not (folder / "lora_config.yaml").is_file():
        run([sys.executable, str(HERE / "make_case.py"), str(folder), *case.make])
    output = folder / OUTPUT
    build = [_tool(), "build", str(folder / "lora_config.yaml"), "-o", str(output), *case.build]
    builds, floors = [], []
    written = 0
    for number in range(min(runs, case.runs or runs) + 1):
        _clean(folder)
        built = run(build)
        written = _written(folder)
        _clean(folder)
        floor = run([sys.executable, *_floor(folder, written), *case.hashed])
        if not case.build:
            floor = _sum(floor, _copied(folder))
        if number:
            builds.append(built)
            floors.append(floor)
    return Result(case, builds, floors, written)


def _floor(folder: Path, written: int) -> list[str]:
    return [str(HERE / "floor.py"), str(folder), str(written)]


def _tool() -> str:
    return str(Path(sys.executable).with_name("lora-quant"))


def _clean(folder: Path) -> None:
    """Remove the output, also what lies beside the base."""
    shutil.rmtree(folder / OUTPUT, ignore_errors=True)
    for path in (folder / "model").glob(f"model.{OUTPUT}.*"):
        path.unlink()


def _written(folder: Path) -> int:
    """Bytes of the output, without the copy of the data file."""
    files = [p for p in (folder / OUTPUT).rglob("*") if p.is_file() and p.name != "model.data"]
    files += (folder / "model").glob(f"model.{OUTPUT}.*")
    return sum(path.stat().st_size for path in files)


def _copied(folder: Path) -> Usage:
    """`cp` of the data file."""
    target = folder / "copy.data"
    used = run(["cp", str(folder / "model" / "model.data"), str(target)])
    target.unlink()
    return used


def _sum(one: Usage, other: Usage) -> Usage:
    return Usage(one.cpu + other.cpu, one.wall + other.wall, max(one.peak, other.peak))


def _small_commands(runs: int) -> Iterator[str]:
    yield "| command | CPU, s | wall, s | peak, MB | asked |"
    yield "| --- | --- | --- | --- | --- |"
    for title, command, asks in (
        ("`lora-quant --help`", [_tool(), "--help"], "0.25 s"),
        ("an empty Python", [sys.executable, "-c", ""], "-"),
        (f"`{_IMPORTS}`", [sys.executable, "-c", _IMPORTS], "-"),
    ):
        used = [run(command) for _ in range(2 * runs + 1)][1:]
        cells = (
            title,
            Spread.of([u.cpu for u in used]).text(3),
            Spread.of([u.wall for u in used]).text(3),
            Spread.of([u.peak for u in used]).text(0),
            asks,
        )
        yield "| " + " | ".join(cells) + " |"


def _head() -> Iterator[str]:
    yield (
        "| build | CPU, s | CPU of the floor, s | beyond the floor, s | ratio | wall, s | peak, MB "
        "| written, MB | asked |"
    )
    yield "|" + " --- |" * 9


def _machine() -> Iterator[str]:
    commit = _git("rev-parse", "--short", "HEAD")
    # The figures of this run are no change.
    others = (".", ":!benchmarks/README.md")
    changed = " with uncommitted changes" if _git("status", "--porcelain", "--", *others) else ""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    yield f"- {time.strftime('%Y-%m')}, commit {commit}{changed}"
    yield (
        f"- {_cpu_model()}, {os.cpu_count()} cores, {_memory():.0f} GB RAM, {platform.system()} "
        f"{platform.machine()}, data on {_file_system()}"
    )
    yield f"- Python {platform.python_version()}, {versions}"


def _git(*arguments: str) -> str:
    found = subprocess.run(
        ["git", *arguments], cwd=HERE, capture_output=True, text=True, check=False
    )
    return found.stdout.strip()


def _cpu_model() -> str:
    for line in _proc("cpuinfo"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def _memory() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _file_system() -> str:
    """Type of the file system that holds the cases."""
    mounts = [line.split() for line in _proc("mounts")]
    place = DATA.resolve() if DATA.exists() else HERE.resolve()
    holding = [(m[1], m[2]) for m in mounts if place.is_relative_to(m[1])]
    return max(holding, key=lambda found: len(found[0]))[1] if holding else "an unknown file system"


def _proc(name: str) -> list[str]:
    path = Path("/proc", name)
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    found.add_argument("cases", nargs="*", metavar="CASE", help="default: all")
    found.add_argument("--runs", type=int, default=5, help="counted runs; default 5")
    found.add_argument(
        "--olive", metavar="PYTHON", help="one with Olive and the GenAI builder, for switching"
    )
    found.add_argument("--list", action="store_true", help="print the names of the cases")
    return found


if __name__ == "__main__":
    sys.exit(main())
