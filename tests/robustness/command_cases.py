"""Commands that write, each with what is there before and where it writes.

python -m tests.robustness.moments CASE --seed N --moments M
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_quant.cli.main import run
from tests.sample import copy_sample, keep_use_cases, make_float

PLACE = "place"
MODEL = "sample/model"


@dataclass(frozen=True)
class Case:
    """`command` is run in a folder with a copy of the sample and a folder `place`.

    `before` are commands that make what is there before. With `waits`, what a kill leaves may be
    half published until the next run takes it back: several names cannot change at once.
    """

    command: Sequence[str]
    before: Sequence[Sequence[str]] = ()
    waits: bool = False

    @property
    def folder_written(self) -> str | None:
        """The folder that a transaction publishes; None if single files are written."""
        if self.command[0] not in ("build", "lower"):
            return None
        return self.command[self.command.index("-o") + 1]


def _build(*options: str) -> tuple[str, ...]:
    return ("build", "sample/lora_config.yaml", "-o", f"{PLACE}/out", *options)


_LOWER = ("lower", "sample/adapters/style", "-o", f"{PLACE}/plain")
_MAP = ("map", f"{MODEL}/model.onnx", "-o", f"{PLACE}/map.json")
_INIT = (
    "init", f"{MODEL}/model.onnx", "sample/adapters/tone",
    "--no-check", "-o", f"{PLACE}/lora_config.yaml",
)  # fmt: skip
_RUN = (
    "run", f"{PLACE}/out", "--use-case", "tone", "--random-inputs", "1", "-o", f"{PLACE}/y.npz",
)  # fmt: skip
_PACK = _build("--target", "onnxruntime")

CASES = {
    "build": Case(_build()),
    "build-force": Case(_build("--force"), [_build("--alpha-name", "strength")]),
    "build-beside": Case(_build("--beside-base"), waits=True),
    "build-beside-force": Case(
        _build("--beside-base", "--force"),
        [_build("--beside-base", "--alpha-name", "strength")],
        waits=True,
    ),
    "build-no-longer-beside": Case(
        _build("--force"), [_build("--beside-base", "--alpha-name", "strength")], waits=True
    ),
    "lower": Case(_LOWER),
    "lower-force": Case(
        (*_LOWER, "--force"), [("lower", "sample/adapters/tone", "-o", f"{PLACE}/plain")]
    ),
    "map": Case(_MAP),
    "map-force": Case((*_MAP, "--force"), [(*_INIT[:-1], f"{PLACE}/map.json", "--no-schema")]),
    "init": Case(_INIT, waits=True),
    "init-force": Case((*_INIT, "--force", "--no-schema"), [(*_MAP[:-1], _INIT[-1])]),
    "run": Case(_RUN, [_PACK]),
    "run-force": Case((*_RUN, "--force"), [_PACK, (*_RUN[:-1], f"{PLACE}/y.npz", "--base")][:1]),
}


def prepare(folder: Path, case: Case) -> None:
    """Put the inputs of a case, and what is there before, into an empty folder."""
    keep_use_cases(make_float(copy_sample(folder)), ["base", "tone"])
    (folder / PLACE).mkdir()
    for command in case.before:
        code = run(command)
        if code != 0:
            raise RuntimeError(f"{' '.join(command)} ended with {code}")


Tree = dict[str, bytes]


def tree_of(folder: Path) -> Tree:
    """What a person sees: every file but those with hidden names, and in hidden folders."""
    return {name: data for name, data in all_files(folder).items() if not _is_hidden(name)}


def hidden_in(folder: Path) -> list[str]:
    """Hidden files and folders, which belong to a build that is not done."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob(".*"))


def all_files(folder: Path) -> Tree:
    """Every file below the folders that a case writes to."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for part in (PLACE, MODEL)
        for path in sorted((folder / part).rglob("*"))
        if path.is_file()
    }


def restore(folder: Path, files: Tree) -> None:
    """Make the folders that a case writes to hold just these files."""
    for part in (PLACE, MODEL):
        shutil.rmtree(folder / part)
        (folder / part).mkdir()
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
