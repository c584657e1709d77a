"""Sessions of packs that were built: adapters of several kinds, against PEFT's outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from lora_quant.api import build
from lora_quant.config.options import BuildOptions
from lora_quant.config.run_config import AdapterRunConfig, UseCaseRunConfig
from lora_quant.errors import ConfigError, InputMissingError, VerificationError
from lora_quant.runtime import BASE, Session
from lora_quant.runtime.session.choice import Choice
from tests.adapters.builders import pair, write
from tests.builders import GraphBuilder
from tests.mixes import KINDS, graph_of, mixed
from tests.run_graph import largest
from tests.runtime.adapter_edits import edit_adapter
from tests.sample import ALPHAS, CONFIG, SAMPLE, copy_sample, make_float

Array = NDArray[Any]
# Both sides are float32: the sums over at most 128 inputs of two layers in another order.
RELATIVE = 1e-5
TARGET = BuildOptions(targets=("onnxruntime",))
IDS = load_file(SAMPLE / "reference" / "inputs.safetensors")["input_ids"][:1]
LOGITS = {
    name: values[:1]
    for name, values in load_file(SAMPLE / "reference" / "logits.safetensors").items()
}
CASES: dict[str, dict[str, Any]] = json.loads((KINDS / "cases.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = tmp_path_factory.mktemp("floats")
    config = make_float(copy_sample(folder))
    return Session(build(config, folder / "pack", TARGET).output)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return Session(build(CONFIG, tmp_path_factory.mktemp("quantized") / "pack", TARGET).output)


def logits(session: Session, choice: Choice, ids: Array = IDS, **more: Any) -> Array:
    (values,) = session.run({"input_ids": ids}, choice, **more).values()
    return values


def config(name: str, strengths: Mapping[str, float]) -> UseCaseRunConfig:
    adapters = [AdapterRunConfig(name=adapter, alpha=alpha) for adapter, alpha in strengths.items()]
    return UseCaseRunConfig(name=name, adapters=adapters)


def is_peft(ours: Array, theirs: Array) -> bool:
    return largest(ours, theirs) <= RELATIVE * float(np.abs(theirs).max())


def oracle(case: str) -> tuple[Array, Array]:
    """Token ids and PEFT's logits."""
    expected = load_file(KINDS / case / "expected.safetensors")
    return expected["input_ids"].astype(np.int64), expected["logits"]


@pytest.mark.parametrize("use_case", ALPHAS)
def test_float_packs_give_peft_s_logits(floats: Session, use_case: str) -> None:
    assert is_peft(logits(floats, use_case), LOGITS[use_case])


def test_a_strength_of_zero_leaves_the_other_adapter_alone(floats: Session) -> None:
    """Ranks of `both`, strengths of a use case with one adapter."""
    for name, strengths in (
        ("tone", {"tone": 1.0, "legal": 0.0}),
        ("legal", {"tone": 0.0, "legal": 1.0}),
    ):
        ours = logits(floats, config("both", strengths))
        assert is_peft(ours, LOGITS[name])


def test_the_base_is_the_base_graph_bit_for_bit(floats: Session, quantized: Session) -> None:
    (path,) = (SAMPLE / "model").glob("*.onnx")
    plain = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (wanted,) = plain.run(None, {"input_ids": IDS})
    for session in (floats, quantized):
        for choice in (BASE, "base", "both", BASE):
            got = logits(session, choice)
            assert np.array_equal(got, wanted) is (choice != "both")


def test_quantized_use_cases_never_mix(quantized: Session) -> None:
    names = quantized.use_cases
    fresh = {}
    for name in names:
        with Session(quantized.graph_file.parents[1]) as alone:
            fresh[name] = logits(alone, name)
    for name in (*names, *reversed(names), "both", "tone", "both"):
        assert np.array_equal(logits(quantized, name), fresh[name]), name


@pytest.mark.parametrize(
    ("options", "rounds"),
    [
        ({"mode": "none"}, True),
        ({"lora_weights": "int8"}, False),
        ({"lora_weights": "int4"}, False),
    ],
    ids=str,
)
def test_activations_that_may_clip_are_told(
    floats: Session, quantized: Session, options: Mapping[str, Any], rounds: bool, tmp_path: Path
) -> None:
    assert quantized.rounds_activations
    assert not floats.rounds_activations
    built = build(CONFIG, tmp_path / "pack", BuildOptions(targets=("onnxruntime",), **options))
    with Session(built.output) as session:
        assert session.rounds_activations is rounds
        effect = LOGITS["both"] - LOGITS["base"]
        assert largest(logits(session, "both"), LOGITS["both"]) < np.abs(effect).max() / 2


def test_gates_open_as_peft_s_do(tmp_path: Path) -> None:
    ids, wanted = oracle("lora_alora")
    built = mixed(
        tmp_path / "pack",
        graph_of("llama"),
        {"it": {"lora_alora": 1.0}},
        targets=("onnxruntime",),
    )
    session = Session(built.output)
    gate = session.gate("it", ids)
    assert gate["lora_alora"].tolist() == CASES["lora_alora"]["gate"]
    assert is_peft(logits(session, "it", ids, gate=gate), wanted)
    shut = np.zeros_like(gate["lora_alora"])
    assert np.array_equal(logits(session, "it", ids, gate=shut), logits(session, BASE, ids))
    with pytest.raises(VerificationError, match="no gate says which"):
        logits(session, "it", ids)


def test_vectors_hold_an_adapter_at_its_strength(tmp_path: Path) -> None:
    ids, wanted = oracle("ia3_feedforward")
    built = mixed(
        tmp_path / "pack",
        graph_of("llama"),
        {"it": {"ia3_feedforward": 1.0}},
        targets=("onnxruntime",),
    )
    session = Session(built.output)
    assert is_peft(logits(session, "it", ids), wanted)
    assert not is_peft(logits(session, BASE, ids), wanted)
    assert is_peft(logits(session, config("it", {"ia3_feedforward": 1.0}), ids), wanted)
    with pytest.raises(ConfigError, match=r"cannot change at run time: got 0.5, expected 1"):
        logits(session, config("it", {"ia3_feedforward": 0.5}), ids)


def test_a_prompt_takes_the_place_of_the_first_tokens(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("inputs_embeds", ("batch", "sequence", 16))
    mean = graph.node("ReduceMean", [x], "mean", axes=[1], keepdims=1)
    added = graph.node("Add", [x, mean], "added")
    node = "/model/layers.0/self_attn/q_proj/MatMul"
    y = graph.matmul(node, added, in_features=16, out_features=16)
    graph.output(y, ("batch", "sequence", 16))
    graph.save(tmp_path / "model.onnx")
    factors = pair("model.layers.0.self_attn.q_proj", features=(16, 16))
    write(tmp_path / "tone", factors, target_modules=["q_proj"])
    built = mixed(
        tmp_path / "pack",
        tmp_path / "model.onnx",
        {"it": {"prompt_tuning": 1.0}, "both": {"tone": 1.0, "prompt_tuning": 1.0}},
        paths={"tone": tmp_path / "tone"},
        targets=("onnxruntime",),
    )
    session = Session(built.output)
    embeds = np.random.default_rng(0).standard_normal((2, 12, 16)).astype(np.float32)
    prompt = load_file(KINDS / "prompt_tuning" / "adapter_model.safetensors")["prompt_embeddings"]
    by_hand = embeds.copy()
    by_hand[:, : len(prompt)] = prompt
    (got,) = session.run({"inputs_embeds": embeds}, "it").values()
    (wanted,) = session.run({"inputs_embeds": by_hand}, BASE).values()
    assert np.array_equal(got, wanted)
    (both,) = session.run({"inputs_embeds": embeds}, "both").values()
    assert largest(both, wanted) > RELATIVE * float(np.abs(wanted).max())
    off = config("both", {"tone": 0.0})
    assert np.array_equal(next(iter(session.run({"inputs_embeds": embeds}, off).values())), wanted)
    with pytest.raises(VerificationError, match="leaves no room for the soft prompt"):
        session.run({"inputs_embeds": embeds[:, : len(prompt)]}, "it")


def test_a_merged_pack_runs_its_use_case(tmp_path: Path) -> None:
    options = BuildOptions(targets=("onnxruntime",), merge="both")
    built = build(make_float(copy_sample(tmp_path)), tmp_path / "pack", options)
    with Session(built.output) as session:
        (ours,) = session.run({"input_ids": IDS}).values()
        assert is_peft(ours, LOGITS["both"])
        with pytest.raises(ConfigError, match="no base to go back to"):
            session.base()
        with pytest.raises(ConfigError, match="cannot change at run time"):
            session.activate(config("both", {"tone": 0.5}))


def test_a_pack_beside_its_base_runs_as_long_as_the_base_is_the_same(tmp_path: Path) -> None:
    options = BuildOptions(targets=("onnxruntime",), beside_base=True)
    source = make_float(copy_sample(tmp_path))
    output = build(source, tmp_path / "pack ö", options).output
    with Session(output) as session:
        assert is_peft(logits(session, "both"), LOGITS["both"])
    (data,) = (source.parent / "model").glob("*.data")
    content = bytearray(data.read_bytes())
    content[0] ^= 1
    data.write_bytes(content)
    with pytest.raises(VerificationError, match="are not those of the base"):
        Session(output)
    data.unlink()
    with pytest.raises(InputMissingError, match="the weights of the base graph are not there"):
        Session(output)


def test_a_pack_for_other_targets_is_refused(tmp_path: Path) -> None:
    output = build(CONFIG, tmp_path / "pack", BuildOptions(targets=("qairt",))).output
    with pytest.raises(
        ConfigError, match="the pack was built for 'qairt', expected 'onnxruntime' or 'qnn'"
    ) as caught:
        Session(output)
    assert caught.value.hint == "build with --target onnxruntime"


@pytest.mark.parametrize("part", ["_quantized", "_scale", "_zero_point"])
def test_codes_without_their_grid_are_refused(part: str, tmp_path: Path) -> None:
    """The engine would take the default for it, which is the grid of zeros."""
    pack = build(CONFIG, tmp_path / "pack", TARGET).output
    tensor = "model.layers.0.self_attn.q_proj.lora_B.weight"
    edit_adapter(pack, lambda parameters: parameters.pop(f"{tensor}{part}"), "both")
    message = f"has a part of what '{tensor}' is quantized with, and lacks '{tensor}{part}'"
    with pytest.raises(VerificationError, match=message):
        Session(pack).activate("both")
