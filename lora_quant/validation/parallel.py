"""Items checked by several processes; the results come in the order of the items.

A process that dies costs its item a finding, and another takes its place. Processes are spawned,
never forked: that is the same on every platform, and safe beside threads. They end with their
parent, however that ends.
"""

from __future__ import annotations

import gc
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Final

from lora_quant.errors import Where
from lora_quant.validation.catalogue.defect import CRASHED
from lora_quant.validation.check_item import check_item
from lora_quant.validation.checked import Checked
from lora_quant.validation.documents.opened import JSON_SUFFIXES, YAML_SUFFIXES
from lora_quant.validation.found.items import Item, Shape
from lora_quant.validation.request import EVERYTHING, Request
from lora_quant.validation.selection import EVERY_RULE, Selection

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

_SECONDS: Final = {Shape.FILE: 0.0015, Shape.ADAPTER: 0.02, Shape.PACK: 0.5, Shape.FAULT: 0.0}
"""What one item of a shape takes at least, about, of one processor."""
_SECONDS_PER_BYTE: Final = {True: 1.5e-7, False: 2e-9}
"""The same for each byte of a file, by whether it is a document or values."""

_WORTH_WORKERS: Final = 2.5
"""Seconds of work below which one process is done sooner: a worker takes one to start."""

_DOCUMENTS: Final = (*YAML_SUFFIXES, *JSON_SUFFIXES)

_BATCH: Final = 16
_BATCH_SECONDS: Final = 0.1
_WINDOW: Final = 1024
"""How many items ahead of the first unfinished one are handed out."""


@dataclass(frozen=True)
class Work:
    """What is done with every item."""

    request: Request = EVERYTHING
    selection: Selection = EVERY_RULE

    def __call__(self, item: Item) -> Checked:
        """The item, checked, with the findings that are wanted."""
        return self.selection.apply(check_item(item, self.request))


def check_items(
    items: Sequence[Item], work: Callable[[Item], Checked], jobs: int | None = None
) -> Iterator[Checked]:
    """The results in the order of the items, the same for any number of processes.

    work: what is done with each, picklable. jobs: how many processes; None for as many as there
    are processors, or for none but this one if that is done sooner. 1 keeps to this process, which
    a crash of a library then ends.
    """
    workers = min(_worth(items) if jobs is None else jobs, len(items))
    if workers < 2:
        yield from map(work, items)
        return
    pool = _Pool(items, work, workers)
    try:
        yield from pool.run()
    finally:
        pool.end()


def _worth(items: Sequence[Item]) -> int:
    return _processors() if sum(map(_seconds, items)) > _WORTH_WORKERS else 1


def _seconds(item: Item) -> float:
    is_document = item.path.suffix.lower() in _DOCUMENTS
    return _SECONDS[item.shape] + item.size * _SECONDS_PER_BYTE[is_document]


def _processors() -> int:
    """Those that this process may use, where the platform tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(eq=False)
class _Worker:
    """A process and what it was given: the first is in work. `ready` once it has said so."""

    process: SpawnProcess
    connection: Connection
    given: deque[int] = field(default_factory=deque)
    ready: bool = False


@dataclass(eq=False)
class _Pool:
    items: Sequence[Item]
    work: Callable[[Item], Checked]
    count: int
    workers: list[_Worker] = field(default_factory=list)
    waiting: deque[int] = field(default_factory=deque)
    done: dict[int, Checked] = field(default_factory=dict)
    first: int = 0
    """The first item whose result has not been handed on."""

    def run(self) -> Iterator[Checked]:
        self.waiting.extend(range(len(self.items)))
        while self.first < len(self.items):
            self._staff()
            if not self.workers:  # none could be started: this process can do it
                self.done[self.first] = self.work(self.items[self.first])
                self.waiting.remove(self.first)
            for worker in self.workers:
                self._give(worker)
            by_connection = {worker.connection: worker for worker in self.workers}
            for connection in wait(list(by_connection)) if by_connection else ():
                self._hear(by_connection[connection])  # type: ignore[index]
            while self.first in self.done:
                yield self.done.pop(self.first)
                self.first += 1

    def end(self) -> None:
        """Workers write nothing, so they need no time to tidy up."""
        for worker in self.workers:
            worker.connection.close()
            worker.process.kill()
        for worker in self.workers:
            worker.process.join()
        self.workers.clear()

    def _staff(self) -> None:
        """As many workers as there is work for."""
        while self.count and len(self.workers) < min(self.count, len(self.waiting)):
            context = get_context("spawn")
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, self.work), daemon=True)
            with _deaf_to_interrupts():
                process.start()
            theirs.close()
            self.workers.append(_Worker(process, ours))

    def _give(self, worker: _Worker) -> None:
        if not worker.ready or worker.given:
            return
        most = max(1, min(_BATCH, len(self.waiting) // (4 * self.count)))
        seconds = 0.0
        while self.waiting and len(worker.given) < most and seconds < _BATCH_SECONDS:
            if self.waiting[0] >= self.first + _WINDOW:
                break
            worker.given.append(self.waiting.popleft())
            seconds += _seconds(self.items[worker.given[-1]])
        if worker.given:
            with suppress(OSError):  # if it died meanwhile, reading from it will tell
                worker.connection.send([self.items[index] for index in worker.given])

    def _hear(self, worker: _Worker) -> None:
        try:
            result: Checked | None = worker.connection.recv()
        except (EOFError, OSError):
            self._bury(worker)
            return
        if result is None:
            worker.ready = True
        else:
            self.done[worker.given.popleft()] = result

    def _bury(self, worker: _Worker) -> None:
        """The item in work is what the worker died of; the others go to the next one."""
        worker.connection.close()
        worker.process.join()
        self.workers.remove(worker)
        if not worker.ready:
            self.count -= 1
        elif worker.given:
            index = worker.given.popleft()
            item = self.items[index]
            how = _ending(worker.process.exitcode)
            finding = CRASHED.finding(
                f"the process that checked this ended {how}", Where(file=item.path)
            )
            self.done[index] = Checked(item.path, None, (finding,))
        self.waiting.extendleft(reversed(worker.given))


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            return f"by the signal {signal.Signals(-code).name}"
        except ValueError:
            return f"by the signal {-code}"
    return f"with the exit code {code}"


def _serve(connection: Connection, work: Callable[[Item], Checked]) -> None:
    """What a worker does: batches of items in, one result out for each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    gc.freeze()  # what was imported is no garbage: looking for it there takes a tenth of the time
    try:
        connection.send(None)
        while True:
            for item in connection.recv():
                connection.send(work(item))
    except (EOFError, OSError):  # the parent is gone
        return


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """What starts in this context never gets SIGINT, and so prints no traceback for it.

    Ctrl-C reaches every process of a terminal, also one that is still importing. Where signals
    cannot be blocked, such as on Windows, a worker is deaf only once it serves.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
