"""What branches cost while they are idle and while they work, and what a switch costs.

    python benchmarks/case_switching.py
    python benchmarks/case_switching.py --olive PYTHON     Olive's graph, and the decoder, as well

Needs onnxruntime. PYTHON is one that has olive-ai 0.13, torch, transformers 5, peft and
onnxruntime-genai; it is needed once, what it makes stays in benchmarks/data/switching.

All graphs are open in one process and take turns: a round runs every graph in every state, in an
order of its own. A figure is the smallest time of all rounds, and the median over the rounds of the
ratio to the base's time in the same round, so that it holds when the machine's speed drifts. Graphs
are opened PASSES times, since where their weights come to lie in memory changes their speed, and a
run that counts follows one that does not, since the graphs push each other out of the caches. One
thread. Before anything is timed, every graph has to give the numbers of the others.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime
from make_olive import MADE_WITH, OLIVE
from switching_models import MODELS, RANKS, Feeds, Form, Model, NotMadeError, forms, prepare

from lora_quant.runtime import Session

TOKENS = (1, 32)
PASSES = 3
ROUNDS = {1: 40, 32: 12}  # of a pass
SWITCHES = 60
LOADS = 5
Task = Callable[[], object]
_CLOSE = 1e-4  # relative; forms sum in different orders, 32 layers deep


@dataclass
class Opened:
    """A session of a form, and run options that activate each adapter."""

    form: Form
    session: onnxruntime.InferenceSession
    options: dict[int | None, onnxruntime.RunOptions]
    keep: list[Any] = field(default_factory=list)  # run options do not keep adapters alive

    def run(self, feeds: Feeds, rank: int | None) -> list[Any]:
        """All outputs, with the adapter of a rank or with none."""
        return self.session.run(None, feeds, self.options[rank])


def opened(form: Form) -> Opened:
    """One thread, so that nothing but the work is measured."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(form.graph), settings, providers=["CPUExecutionProvider"]
    )
    found = Opened(form, session, {None: onnxruntime.RunOptions()})
    for rank, path in form.adapters.items():
        adapter = onnxruntime.LoraAdapter()
        adapter.Load(str(path))
        found.options[rank] = onnxruntime.RunOptions()
        found.options[rank].add_active_adapter(adapter)
        found.keep.append(adapter)
    return found


def check(graphs: list[Opened], feeds: Feeds) -> None:
    """Idle graphs give the base's numbers, working ones each other's."""
    for rank in (None, *RANKS):
        having = [g for g in graphs if rank in g.options]
        expected = having[0].run(feeds, rank)[0]
        for graph in having[1:]:
            error = np.abs(graph.run(feeds, rank)[0] - expected).max() / np.abs(expected).max()
            if not error <= _CLOSE:
                sys.exit(f"{graph.form.graph} differs by {error:.1e} with adapter {rank}")


def cost_rows(model: Model) -> Iterator[str]:
    """A row per form and state: time and per cent beyond the base, for 1 and for 32 tokens."""
    found = tuple(forms(model))
    titles = [(form, rank) for form in found for rank in (None, *form.adapters)]
    times: dict[int, list[list[float]]] = {tokens: [[] for _ in titles] for tokens in TOKENS}
    for _ in range(PASSES):
        graphs = [opened(form) for form in found]
        states = [(graph, rank) for graph in graphs for rank in graph.options]
        for tokens in TOKENS:
            feeds = model.feeds(tokens)
            check(graphs, feeds)
            tasks = [partial(graph.run, feeds, rank) for graph, rank in states]
            for own, more in zip(times[tokens], rounds(tasks, ROUNDS[tokens]), strict=True):
                own += more
    for number, (form, rank) in enumerate(titles):
        state = "-" if not form.adapters else f"rank {rank}" if rank else "idle"
        cells = [_cells(times[tokens][number], times[tokens][0], state) for tokens in TOKENS]
        yield f"| {model.name} | {form.name} | {state} | {' | '.join(cells)} |"


def _cells(own: list[float], base: list[float], state: str) -> str:
    ratio = statistics.median(one / other for one, other in zip(own, base, strict=True))
    return f"{min(own) * 1e3:.2f} | " + ("-" if state == "-" else f"{(ratio - 1) * 100:+.0f} %")


def rounds(tasks: Sequence[Task], count: int) -> list[list[float]]:
    """Seconds of every task in every round; each runs twice in a row, the second time counts."""
    order = random.Random(0)
    times: list[list[float]] = [[] for _ in tasks]
    for _ in range(count):
        for number in order.sample(range(len(tasks)), len(tasks)):
            tasks[number]()
            times[number].append(_seconds(tasks[number]))
    return times


def switch_rows(model: Model) -> Iterator[str]:
    """What it costs to change the use case, and what it would cost to open another graph."""
    pack = model.folder / "pack"
    form = next(f for f in forms(model) if f.name == "open")
    graph = opened(form)
    feeds = model.feeds(1)
    few, many = RANKS[0], RANKS[1]
    with Session(pack, threads=1) as session:
        # Of two runs of one use case the first switches to it, the second does not.
        order = [many, many, few, few]
        ways: dict[str, list[Task]] = {
            "`Session.run`": [partial(session.run, feeds, f"r{rank}") for rank in order],
            "`add_active_adapter`": [partial(graph.run, feeds, rank) for rank in order],
        }
        times: dict[str, list[float]] = {}
        for number in range(-1, SWITCHES):
            for way, tasks in ways.items():
                for place, task in enumerate(tasks):
                    after = ("another use case", "the same")[place % 2]
                    seconds = _seconds(task)
                    if number >= 0:
                        times.setdefault(f"{way} after {after}", []).append(seconds)
        for what, own in times.items():
            yield _row(model, what, own)
        again = partial(session.activate, f"r{many}")
        yield _row(model, "`Session.activate`, loaded before", *rounds([again], SWITCHES))
    first = []
    for _ in range(LOADS):
        with Session(pack, threads=1) as session:
            first.append(_seconds(partial(session.activate, f"r{many}")))
    yield _row(model, "`Session.activate`, first time", first)
    loads = rounds([partial(_load, form)], LOADS)
    yield _row(model, "`LoraAdapter.Load` and `add_active_adapter`", *loads)
    yield _row(
        model, "opening the graph anew", [_seconds(partial(opened, form)) for _ in range(LOADS)]
    )


def _seconds(task: Task) -> float:
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def _load(form: Form) -> Any:
    adapter = onnxruntime.LoraAdapter()
    adapter.Load(str(form.adapters[RANKS[1]]))
    options = onnxruntime.RunOptions()
    options.add_active_adapter(adapter)
    return adapter, options


def _row(model: Model, what: str, times: list[float]) -> str:
    found = [seconds * 1e3 for seconds in times]
    return f"| {model.name} | {what} | {min(found):.3f} | {statistics.median(found):.3f} |"


def report(olive: str | None) -> Iterator[str]:
    """The tables as Markdown."""
    yield f"onnxruntime {onnxruntime.__version__}, 1 thread, {PASSES} passes"
    yield ""
    yield (
        "| model | graph | adapter | 1 token, ms | beyond the base | 32 tokens, ms "
        "| beyond the base |"
    )
    yield "|" + " --- |" * 7
    notes, made = [], []
    for model in MODELS:
        try:
            prepare(model, olive)
        except NotMadeError as error:
            notes.append(str(error))
            continue
        made.append(model)
        yield from cost_rows(model)
        made_with = model.folder / OLIVE / MADE_WITH
        if made_with.is_file():
            text = made_with.read_text(encoding="utf-8").strip()
            notes.append(f"{model.name}: {model.title}; Olive's graph by {text}")
        else:
            notes.append(f"{model.name}: {model.title}; without Olive's graph: give --olive PYTHON")
    yield ""
    yield "| model | what | smallest, ms | median, ms |"
    yield "|" + " --- |" * 4
    for model in made:
        yield from switch_rows(model)
    yield ""
    yield from (f"- {note}" for note in notes)


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--olive", metavar="PYTHON", help="makes what needs Olive or the builder")
    print("\n".join(report(parser.parse_args().olive)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
