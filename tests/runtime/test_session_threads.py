"""One session in many threads: every run gets what it gets alone, and files are read once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lora_quant.config.run_config import AdapterRunConfig, UseCaseRunConfig
from lora_quant.engines.adapter_file import AdapterFile, read_adapter
from lora_quant.runtime import BASE, Session
from lora_quant.runtime.session.choice import Choice
from tests.runtime.session_packs import DIM, USE_CASES, Handmade

THREADS = 8
ROUNDS = 60


def in_threads(work: Callable[[int], None]) -> list[BaseException]:
    """Run `work` in several threads that begin together; what they raised."""
    barrier = threading.Barrier(THREADS)
    errors: list[BaseException] = []

    def run(number: int) -> None:
        barrier.wait()
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(Handmade().write(tmp_path / "pack"), threads=1)


def choices() -> list[Choice]:
    halves = [
        UseCaseRunConfig(name="both", adapters=[AdapterRunConfig(name="tone", alpha=alpha)])
        for alpha in (0.0, 0.5, 2.0)
    ]
    return [*USE_CASES, *halves, BASE]


def inputs(number: int) -> NDArray[np.float32]:
    random = np.random.default_rng(number)
    return random.standard_normal((1 + number % 3, 2, DIM)).astype(np.float32)


def test_threads_get_what_each_would_get_alone(session: Session) -> None:
    all_of_them = choices()
    alone = [
        [session.run({"x": inputs(number)}, choice) for choice in all_of_them]
        for number in range(THREADS)
    ]

    def work(number: int) -> None:
        for step in range(ROUNDS):
            which = (number + step) % len(all_of_them)
            got = session.run({"x": inputs(number)}, all_of_them[which])
            for name, wanted in alone[number][which].items():
                assert np.array_equal(got[name], wanted), (number, step, name)

    assert in_threads(work) == []


def test_an_activation_of_another_thread_gives_one_use_case_or_the_other(session: Session) -> None:
    x = inputs(0)
    wanted = [session.run({"x": x}, choice)["q"] for choice in ("tone", "legal", BASE)]
    session.activate("tone")

    def work(number: int) -> None:
        for step in range(ROUNDS):
            if number % 2:
                session.activate(("tone", "legal", BASE)[step % 3])
            else:
                got = session.run({"x": x})["q"]
                assert any(np.array_equal(got, one) for one in wanted), step

    assert in_threads(work) == []


def test_a_use_case_is_read_once_however_many_ask_for_it(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[str] = Counter()

    def counted(path: Path) -> AdapterFile:
        read[path.stem] += 1
        return read_adapter(path)

    monkeypatch.setattr("lora_quant.runtime.session.use_case.read_adapter", counted)

    def work(number: int) -> None:
        for name in USE_CASES:
            session.run({"x": inputs(number)}, name)

    assert in_threads(work) == []
    assert read == dict.fromkeys(USE_CASES, 1)


def test_closing_lets_runs_end(session: Session) -> None:
    x = inputs(1)
    wanted = session.run({"x": x}, "both")["q"]
    outcomes: list[bool] = []

    def work(number: int) -> None:
        if number == 0:
            session.close()
            return
        try:
            outcomes.append(np.array_equal(session.run({"x": x}, "both")["q"], wanted))
        except Exception as error:
            outcomes.append("the session is closed" in str(error))

    assert in_threads(work) == []
    assert outcomes == [True] * (THREADS - 1)
