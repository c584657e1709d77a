"""What a session refuses, before the engine sees it, and what it says."""

from __future__ import annotations

import gc
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from lora_quant.config.manifest import Manifest
from lora_quant.config.run_config import AdapterRunConfig, UseCaseRunConfig
from lora_quant.errors import ConfigError, InputMissingError, LoraQuantError, VerificationError
from lora_quant.runtime import BASE, Session
from tests.runtime.session_packs import DIM, FINGERPRINT, Handmade, record_again, rewrite

Array = NDArray[Any]
Values = dict[str, Array]
X = np.ones((1, 2, DIM), np.float32)
PACK = Handmade()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return PACK.write(tmp_path / "pack")


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return Session(PACK.write(tmp_path_factory.mktemp("refusals") / "pack"))


def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the engine must not see anything."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the engine was reached")

    for name in ("session.graph.open_graph", "session.use_case.read_adapter"):
        monkeypatch.setattr(f"lora_quant.runtime.{name}", fail)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


FILES = ["model.onnx", "weights.data", "tone.onnx_adapter", "both.onnx_adapter"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("integrity", ["full", "quick"])
def test_a_flipped_byte_is_refused_when_the_pack_is_opened(
    folder: Path, name: str, integrity: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(folder / "onnxruntime" / name)
    no_engine(monkeypatch)
    with pytest.raises(VerificationError, match="its SHA-256 differs") as caught:
        Session(folder, integrity=integrity)
    assert caught.value.where.file == folder / "onnxruntime" / name


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused_when_the_pack_is_opened(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "onnxruntime" / name).unlink()
    no_engine(monkeypatch)
    with pytest.raises(InputMissingError, match="a file of the pack is missing"):
        Session(folder, integrity="quick")


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused_when_the_pack_is_opened(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "onnxruntime" / name
    path.write_bytes(path.read_bytes()[:-1])
    no_engine(monkeypatch)
    with pytest.raises(VerificationError, match=r"has [\d,]+ bytes, expected [\d,]+"):
        Session(folder, integrity="quick")


def test_a_quick_check_does_not_read_large_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(folder / "onnxruntime" / "weights.data")
    monkeypatch.setattr("lora_quant.runtime.session.pack_files._QUICK_BYTES", 100)
    Session(folder, integrity="quick").close()
    with pytest.raises(VerificationError, match="its SHA-256 differs"):
        Session(folder)


def test_the_adapter_of_a_pack_for_another_base_is_refused(folder: Path, tmp_path: Path) -> None:
    other = Handmade(fingerprint=FINGERPRINT + 1).write(tmp_path / "other")
    stranger = other / "onnxruntime" / "tone.onnx_adapter"
    shutil.copy(stranger, folder / "onnxruntime" / "tone.onnx_adapter")
    with pytest.raises(VerificationError, match="its SHA-256 differs"):
        Session(folder)
    record_again(folder, folder / "onnxruntime" / "tone.onnx_adapter")
    session = Session(folder)
    session.run({"x": X}, "legal")
    with pytest.raises(
        VerificationError,
        match=f"made for another graph or base: got the fingerprint {FINGERPRINT + 1}",
    ):
        session.run({"x": X}, "tone")


def test_the_weights_beside_a_base_must_be_the_ones_of_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Handmade(beside_base=True).write(tmp_path / "pack")
    data = tmp_path / "base of pack" / "weights.data"
    flip(data)
    no_engine(monkeypatch)
    with pytest.raises(VerificationError, match="are not those of the base") as caught:
        Session(folder)
    assert "put the base's data file back" in str(caught.value)
    data.unlink()
    with pytest.raises(InputMissingError, match="the weights of the base graph are not there"):
        Session(folder)


def test_a_file_that_is_replaced_while_the_session_is_open_is_refused(folder: Path) -> None:
    session = Session(folder)
    session.run({"x": X}, "tone")
    rewrite(folder, "legal", PACK.parameters("tone"), FINGERPRINT)
    with pytest.raises(VerificationError, match="changed while the session was open"):
        session.run({"x": X}, "legal")
    session.run({"x": X}, "tone")


def test_a_folder_that_is_no_pack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError):
        Session(tmp_path)


def rank(values: Values, tensor: str, axis: int) -> Values:
    """One rank less in one tensor."""
    return {**values, tensor: np.delete(values[tensor], 0, axis)}


DAMAGES: Mapping[str, tuple[Callable[[Values], Values], str]] = {
    "an unknown tensor": (
        lambda v: {**v, "q.weight": np.zeros((DIM, DIM), np.float32)},
        "has tensors that the graph does not take: 'q.weight'",
    ),
    "another dtype": (
        lambda v: {**v, "q.A": v["q.A"].astype(np.float16)},
        "the tensor 'q.A' is float16 [4, 2], expected float32 [4, ?]",
    ),
    "another shape": (
        lambda v: {**v, "q.A": v["q.A"].T.copy()},
        "the tensor 'q.A' is float32 [2, 4], expected float32 [4, ?]",
    ),
    "other axes": (
        lambda v: {**v, "lora_alpha": v["lora_alpha"][None]},
        "the tensor 'lora_alpha' is float32 [1, 2], expected float32 [2]",
    ),
    "ranks that differ": (
        lambda v: rank(v, "q.B", 0),
        "do not agree on the size 'lora_rank_q': 'q.A' has 2, 'q.B' has 1",
    ),
    "a part of a branch": (
        lambda v: {name: value for name, value in v.items() if name != "q.expansion"},
        "do not agree on the size 'lora_rank_q': 'q.A' has 2, 'q.expansion' is not in the file",
    ),
    "no strengths": (
        lambda v: {name: value for name, value in v.items() if name != "lora_alpha"},
        "the strengths in the adapter file are missing, the use case was compiled with [1.0, 0.0]",
    ),
    "strengths of another use case": (
        lambda v: {**v, "lora_alpha": PACK.parameters("both")["lora_alpha"]},
        "the strengths in the adapter file are [0.75, 1.5], the use case was compiled with "
        "[1.0, 0.0]",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_adapter_that_does_not_fit_the_graph_is_refused(folder: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    rewrite(folder, "tone", change(PACK.parameters("tone")), FINGERPRINT)
    session = Session(folder)
    with pytest.raises(VerificationError, match=re.escape(message)) as caught:
        session.activate("tone")
    assert caught.value.where.use_case == "tone"
    session.run({"x": X}, "both")


def test_a_graph_without_a_recorded_input_is_refused(folder: Path) -> None:
    path = folder / "onnxruntime" / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    kept = [value for value in model.graph.input if value.name != "v.A"]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    path.write_bytes(model.SerializeToString())
    record_again(folder, path)
    with pytest.raises(VerificationError, match=r"disagree on the input 'v.A': got nothing"):
        Session(folder)


def test_a_graph_that_the_engine_does_not_take_is_refused_in_its_words(folder: Path) -> None:
    path = folder / "onnxruntime" / "model.onnx"
    path.write_bytes(b"no graph")
    record_again(folder, path)
    with pytest.raises(VerificationError, match=r"ONNX Runtime cannot load the graph: .*INVALID"):
        Session(folder)


INPUTS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "nothing": ({}, "the inputs lack 'x'"),
    "an unknown one": ({"x": X, "y": X}, "the graph has no input 'y'"),
    "another dtype": ({"x": X.astype(np.float64)}, "input 'x' is float64, expected float32"),
    "another size": (
        {"x": X[..., :2]},
        "input 'x' has the shape [1, 2, 2], expected [batch, tokens, 4]",
    ),
    "other axes": ({"x": X[0]}, "input 'x' has the shape [2, 4], expected [batch, tokens, 4]"),
    "a LoRA weight": (
        {"x": X, "q.A": np.zeros((DIM, 2), np.float32)},
        "the input 'q.A' belongs to use cases and their strengths",
    ),
    "strengths": (
        {"x": X, "lora_alpha": np.ones(2, np.float32)},
        "a value given by hand would mix two of them",
    ),
}


@pytest.mark.parametrize("case", INPUTS)
def test_inputs_that_do_not_fit_are_refused(session: Session, case: str) -> None:
    inputs, message = INPUTS[case]
    for choice in ("tone", BASE):
        with pytest.raises(VerificationError, match=re.escape(message)):
            session.run(inputs, choice)


def config(name: str, **alphas: float) -> UseCaseRunConfig:
    adapters = [AdapterRunConfig(name=adapter, alpha=alpha) for adapter, alpha in alphas.items()]
    return UseCaseRunConfig(name=name, adapters=adapters)


def test_a_use_case_that_does_not_exist_is_refused_with_a_guess(session: Session) -> None:
    with pytest.raises(ConfigError, match="no use case 'botth'") as caught:
        session.run({"x": X}, "botth")
    assert caught.value.hint == "did you mean 'both'?"


def test_an_adapter_that_is_not_in_the_use_case_is_refused_with_a_guess(session: Session) -> None:
    with pytest.raises(ConfigError, match="'tone' has no adapter 'legal'") as caught:
        session.run({"x": X}, config("tone", legal=1.0))
    assert caught.value.hint == "known: 'tone'"


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 1e39, -1e39])
def test_a_strength_that_is_no_number_of_the_graph_is_refused(
    session: Session, alpha: float
) -> None:
    with pytest.raises(ConfigError, match=r"finite number|beyond what the graph can hold"):
        session.run({"x": X}, config("tone", tone=alpha))


def test_nothing_runs_before_a_use_case_is_chosen(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no use case is chosen"):
        Session(folder).run({"x": X})


def test_an_unknown_output_is_refused_with_a_guess(session: Session) -> None:
    with pytest.raises(VerificationError, match="no output 'w'"):
        session.run({"x": X}, "tone", outputs=["w"])


def test_a_text_is_not_taken_for_its_letters(session: Session) -> None:
    with pytest.raises(VerificationError, match="given as the text 'q', expected a list") as caught:
        session.run({"x": X}, "tone", outputs="q")
    assert caught.value.hint == "give ['q']"


def test_no_named_output_means_all_of_them(session: Session) -> None:
    assert set(session.run({"x": X}, "tone", outputs=[])) == {"q", "v"}


@pytest.mark.parametrize(
    ("place", "message"),
    [("", "the folder is not a pack: it has no pack.json"), ("away", "the pack does not exist")],
)
def test_what_is_no_pack_is_told_as_such(place: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match=message) as caught:
        Session(tmp_path / place)
    assert caught.value.where.file == tmp_path / place
    assert caught.value.hint == "give the folder that `lora-quant build -o` wrote"


def test_parts_that_do_not_follow_a_strength_hold_it_where_it_was_compiled(tmp_path: Path) -> None:
    pack = Handmade(beyond_alpha={"tone": ["c", "g"]})
    session = Session(pack.write(tmp_path / "pack"))
    session.run({"x": X}, config("both", tone=0.75, legal=0.1))
    with pytest.raises(ConfigError, match=r"got 0.5, expected 0.75 as compiled") as caught:
        session.run({"x": X}, config("both", tone=0.5))
    assert "a trained bias, the vector g, which scales outputs" in caught.value.message
    assert "switch to a use case without it" in str(caught.value.hint)


CHOICES: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "another target": ({"target": "qnn"}, "the pack was built for 'onnxruntime', expected 'qnn'"),
    "no target of a session": ({"target": "qairt"}, "a session cannot run the target 'qairt'"),
    "a device that does not exist": ({"device": "gpu"}, "there is no device 'gpu'"),
    "no thread": ({"threads": 0}, "threads is 0, expected 1 or more"),
    "an architecture for the CPU": (
        {"htp_arch": "73"},
        "the HTP architecture '73' is given for a run on the CPU",
    ),
    "a check that does not exist": ({"integrity": ""}, "there is no integrity check ''"),
    "a device of another target": (
        {"target": "onnxruntime", "device": "htp"},
        "the device 'htp' runs the target 'qnn', got 'onnxruntime'",
    ),
    "a device that the pack was not built for": (
        {"device": "htp"},
        "the pack was built for 'onnxruntime', expected 'qnn'",
    ),
}


@pytest.mark.parametrize("case", CHOICES)
def test_a_target_that_does_not_run_is_refused(folder: Path, case: str) -> None:
    options, message = CHOICES[case]
    with pytest.raises(ConfigError, match=re.escape(message)):
        Session(folder, **options)


def test_a_merged_pack_has_its_one_use_case_and_no_base(folder: Path) -> None:
    file = folder / "pack.json"
    manifest = Manifest.model_validate_json(file.read_text(encoding="utf-8"))
    (target,) = manifest.targets
    target = target.model_copy(
        update={"inputs": (), "files": tuple(f for f in target.files if f.role != "adapter")}
    )
    merged = manifest.model_copy(
        update={
            "merged": "both",
            "alpha": None,
            "targets": (target,),
            "use_cases": tuple(u for u in manifest.use_cases if u.name == "both"),
        }
    )
    file.write_text(merged.dump(), encoding="utf-8")
    session = Session(folder)
    assert session.active == "both"
    assert session.run({"x": X}).keys() == {"q", "v"}
    with pytest.raises(ConfigError, match="no base to go back to"):
        session.base()
    with pytest.raises(ConfigError, match="the graph has no input for strengths"):
        session.run({"x": X}, config("both", tone=0.5))


def test_refusals_leave_nothing_open(folder: Path) -> None:
    """Warnings are errors: a file that is left open would fail here."""
    flip(folder / "onnxruntime" / "tone.onnx_adapter")
    with pytest.raises(LoraQuantError):
        Session(folder)
    gc.collect()
