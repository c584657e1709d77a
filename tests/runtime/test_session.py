"""Sessions that switch use cases, against the formula of the branch in float64."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

import lora_quant
from lora_quant.config.run_config import AdapterRunConfig, UseCaseRunConfig
from lora_quant.errors import ConfigError, VerificationError
from lora_quant.runtime import BASE, Session
from lora_quant.runtime.session.choice import Choice
from tests.runtime.session_packs import DIM, USE_CASES, Handmade

Array = NDArray[Any]
PACK = Handmade()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return PACK.write(tmp_path_factory.mktemp("session") / "pack")


@pytest.fixture
def session(folder: Path) -> Iterator[Session]:
    with Session(folder) as session:
        yield session


@pytest.fixture
def x() -> Array:
    return np.random.default_rng(5).standard_normal((2, 3, DIM)).astype(np.float32)


def strong(name: str, **alphas: float) -> UseCaseRunConfig:
    adapters = [AdapterRunConfig(name=adapter, alpha=alpha) for adapter, alpha in alphas.items()]
    return UseCaseRunConfig(name=name, adapters=adapters)


def assert_as(got: Mapping[str, Array], x: Array, strengths: Mapping[str, float]) -> None:
    """The outputs are those of the formula, to the rounding of float32 (see Handmade.bounds)."""
    bounds = PACK.bounds(x, strengths)
    for name, wanted in PACK.expected(x, strengths).items():
        assert np.abs(got[name] - wanted).max() <= bounds[name], name


def same(got: Mapping[str, Array], wanted: Mapping[str, Array]) -> bool:
    return got.keys() == wanted.keys() and all(np.array_equal(got[n], wanted[n]) for n in wanted)


@pytest.mark.parametrize("use_case", USE_CASES)
def test_a_use_case_runs_with_its_compiled_strengths(
    session: Session, x: Array, use_case: str
) -> None:
    assert_as(session.run({"x": x}, use_case), x, USE_CASES[use_case])


@pytest.mark.parametrize("tone", [0.0, 0.5, 1.0, -2.0])
def test_a_strength_is_absolute_and_the_others_stay(
    session: Session, x: Array, tone: float
) -> None:
    got = session.run({"x": x}, strong("both", tone=tone))
    assert_as(got, x, {"tone": tone, "legal": USE_CASES["both"]["legal"]})


def test_all_strengths_of_zero_are_the_base_bit_for_bit(session: Session, x: Array) -> None:
    got = session.run({"x": x}, strong("both", tone=0.0, legal=0.0))
    assert same(got, session.run({"x": x}, BASE))


def test_the_compiled_strengths_by_name_give_the_same_bits(session: Session, x: Array) -> None:
    named = strong("both", **USE_CASES["both"])
    assert same(session.run({"x": x}, named), session.run({"x": x}, "both"))


def test_what_is_activated_runs_until_something_else_is(session: Session, x: Array) -> None:
    told: list[object] = [session.active]
    session.activate(strong("tone", tone=0.25))
    told.append(session.active)
    assert_as(session.run({"x": x}), x, {"tone": 0.25})
    assert_as(session.run({"x": x}, "legal"), x, USE_CASES["legal"])
    assert_as(session.run({"x": x}), x, {"tone": 0.25})
    session.base()
    assert [*told, session.active] == [None, "tone", BASE]
    assert_as(session.run({"x": x}), x, {})


def test_a_refused_activation_leaves_what_was_active(session: Session, x: Array) -> None:
    session.activate("tone")
    with pytest.raises(ConfigError):
        session.activate("both ")
    assert_as(session.run({"x": x}), x, USE_CASES["tone"])


def test_use_cases_never_mix(folder: Path, session: Session, x: Array) -> None:
    everything: list[Choice] = [*USE_CASES, BASE]
    fresh: dict[Choice, Mapping[str, Array]] = {}
    for choice in everything:
        with Session(folder) as alone:
            fresh[choice] = alone.run({"x": x}, choice)
    order: list[Choice] = ["tone", BASE, "both", "legal", "tone", "plain", "both", BASE, "legal"]
    for choice in order:
        assert same(session.run({"x": x}, choice), fresh[choice]), choice


def test_switching_opens_no_session(
    folder: Path, x: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    original = onnxruntime.InferenceSession

    def counted(*args: Any, **kwargs: Any) -> Any:
        opened.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", counted)
    choices: list[Choice] = [*USE_CASES, BASE, strong("both", tone=0.1), *USE_CASES]
    with Session(folder) as session:
        for choice in choices:
            session.run({"x": x}, choice)
    assert len(opened) == 1


def test_switching_reads_no_file_twice(tmp_path: Path, x: Array) -> None:
    folder = PACK.write(tmp_path / "pack")
    with Session(folder) as session:
        session.preload()
        for file in folder.rglob("*.onnx_adapter"):
            file.unlink()
        for name, strengths in USE_CASES.items():
            assert_as(session.run({"x": x}, name), x, strengths)


def test_values_live_as_long_as_they_are_needed(session: Session, x: Array) -> None:
    session.activate("both")
    gc.collect()
    ballast = [np.full(1000, np.nan, np.float32) for _ in range(1000)]
    assert_as(session.run({"x": x}), x, USE_CASES["both"])
    assert len(ballast) == 1000


def test_only_named_outputs_are_computed(session: Session, x: Array) -> None:
    got = session.run({"x": x}, "tone", outputs=["v"])
    assert [*got] == ["v"]
    assert np.array_equal(got["v"], session.run({"x": x}, "tone")["v"])


def test_inputs_are_not_changed_and_need_not_be_contiguous(session: Session, x: Array) -> None:
    turned = np.asfortranarray(x)
    before = turned.copy()
    assert same(session.run({"x": turned}, "both"), session.run({"x": x}, "both"))
    assert np.array_equal(turned, before)


def test_a_session_tells_what_it_takes_and_has(session: Session) -> None:
    assert session.target == "onnxruntime"
    assert session.use_cases == tuple(USE_CASES)
    assert [(v.name, v.dtype, v.shape) for v in session.inputs] == [
        ("x", "float32", ("batch", "tokens", DIM))
    ]
    assert [v.name for v in session.outputs] == ["q", "v"]
    assert session.strengths(strong("both", tone=3.0)) == {"tone": 3.0, "legal": 1.5}
    assert not session.rounds_activations


def test_a_closed_session_says_so(folder: Path, x: Array) -> None:
    session = Session(folder)
    session.activate("tone")
    session.close()
    for choice in (None, "tone", "legal"):
        with pytest.raises(VerificationError, match="the session is closed"):
            session.run({"x": x}, choice)


def test_a_folder_may_have_spaces_and_umlauts(tmp_path: Path, x: Array) -> None:
    folder = PACK.write(tmp_path / "Pakete für Größen" / "日本 pack")
    with Session(folder) as session:
        assert_as(session.run({"x": x}, "both"), x, USE_CASES["both"])


def test_a_graph_beside_its_base_runs(tmp_path: Path, x: Array) -> None:
    folder = Handmade(beside_base=True).write(tmp_path / "pack")
    with Session(folder) as session:
        assert_as(session.run({"x": x}, "both"), x, USE_CASES["both"])


def test_a_quick_check_runs_the_same(folder: Path, x: Array) -> None:
    with Session(folder, integrity="quick", threads=1) as session:
        assert_as(session.run({"x": x}, "both"), x, USE_CASES["both"])


def test_the_session_is_a_public_name() -> None:
    assert lora_quant.Session is Session
    assert lora_quant.BASE is BASE
