"""Several processes give what one gives, also when some of them die, and end when they are told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from lora_quant.validation import parallel
from lora_quant.validation.checked import Checked
from lora_quant.validation.found.items import Item, Shape, find_items
from lora_quant.validation.kinds import Kind
from lora_quant.validation.parallel import Work, check_items
from lora_quant.validation.request import Request
from lora_quant.validation.rule import Level
from lora_quant.validation.selection import Selection
from tests.command_line import environment
from tests.sample import ROOT


def items(count: int, size: int = 0) -> list[Item]:
    return [Item(Path(f"{number}.json"), Shape.FILE, size=size) for number in range(count)]


@dataclass(frozen=True)
class Dies:
    """Work that ends its process at some items."""

    at: frozenset[str]

    def __call__(self, item: Item) -> Checked:
        if item.path.name in self.at:
            os._exit(7)
        return Checked(item.path, Kind.REPORT, ())


class CannotStart:
    """Work that no other process can load."""

    def __call__(self, item: Item) -> Checked:
        return Checked(item.path, Kind.REPORT, ())

    def __setstate__(self, _state: object) -> None:
        os._exit(7)

    def __getstate__(self) -> object:
        return {"anything": 1}


@dataclass(frozen=True)
class Sleeps:
    """Work that takes longer than any test; the arguments are those of `Work`."""

    request: Request
    selection: Selection

    def __call__(self, item: Item) -> Checked:
        time.sleep(600)
        return Checked(item.path, None, ())


def test_the_results_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    for number in range(40):
        rank = '"8"' if number % 7 == 0 else "8"
        (tmp_path / f"{number}.json").write_text(
            f'{{"name": "a", "rank": {rank}, "alpha": 1, "target_modules": ["q"]}}'
        )
    found = list(find_items([tmp_path]))
    work = Work(Request(levels=frozenset({Level.SCHEMA})), Selection(ignore=frozenset({"device"})))
    alone = list(check_items(found, work, jobs=1))
    assert [bool(item.findings) for item in alone].count(True) == 6
    assert list(check_items(found, work, jobs=2)) == alone


def test_a_process_that_dies_costs_one_item(capfd: pytest.CaptureFixture[str]) -> None:
    asked = items(60)
    dies = Dies(frozenset({"3.json", "4.json"}))
    results = list(check_items(asked, dies, jobs=2))
    assert [result.path for result in results] == [item.path for item in asked]
    crashed = {r.path.name: r.findings for r in results if r.findings}
    assert set(crashed) == dies.at
    for name, (finding,) in crashed.items():
        assert finding.rule == "defect/crashed"
        assert finding.where.file == Path(name)
        assert finding.message == "the process that checked this ended with the exit code 7"
    assert capfd.readouterr() == ("", "")


def test_where_no_process_can_be_started_this_one_does_it() -> None:
    results = list(check_items(items(5), CannotStart(), jobs=2))
    assert [result.path.name for result in results] == [f"{n}.json" for n in range(5)]


def test_processes_are_started_where_they_save_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_processors", lambda: 8)
    assert [parallel._worth(items(count)) for count in (1, 100, 10_000)] == [1, 1, 8]
    assert parallel._worth(items(2, size=100_000_000)) == 8


def test_signals_of_processes_are_told_by_name() -> None:
    assert parallel._ending(-int(signal.SIGTERM)) == "by the signal SIGTERM"
    assert parallel._ending(-10_000) == "by the signal 10000"


SCRIPT = """
from lora_quant.cli.main import main
from lora_quant.validation import parallel, validate
from tests.validation.test_parallel import Sleeps

hear = parallel._Pool._hear
def told(self, worker):
    hear(self, worker)
    if all(one.ready for one in self.workers):
        print("ready", flush=True)
parallel._Pool._hear = told
validate.Work = Sleeps
if __name__ == "__main__":
    main()
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_interrupt_ends_all_processes_at_once(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.json").write_text("{}")
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "validate", str(tmp_path), "--jobs", "2", "--no-config"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(PYTHONPATH=str(ROOT)),
        encoding="utf-8",
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does for Ctrl-C
    # The pipes end with the last process that holds them: no worker sleeps on.
    out, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (out, error.strip()) == ("", "interrupted: nothing was left behind")
