"""`verify` accepts a good pack, and finds what is wrong with a bad one by running it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from safetensors.numpy import load_file, save_file

from lora_quant.api import build
from lora_quant.cli.render_verification import show_verification
from lora_quant.config.lora_config import read_lora_config
from lora_quant.config.options import BuildOptions
from lora_quant.errors import ConfigError, InputMissingError, LoraQuantError, VerificationError
from lora_quant.runtime.feeds.inputs import guessed_axes, random_inputs
from lora_quant.runtime.verify.settings import DEFAULT_TOLERANCE
from lora_quant.runtime.verify.verification import Verification
from lora_quant.runtime.verify.verify import verify
from tests.adapters.builders import pair, write
from tests.builders import GraphBuilder, Shape, attention
from tests.conftest import Packs
from tests.sample import SAMPLE, Document, copy_sample, edit_json, keep_use_cases, make_float

INPUTS = SAMPLE / "reference" / "inputs.safetensors"
Q0 = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """A pack and its inputs, all of which may be changed."""
    config = keep_use_cases(make_float(copy_sample(tmp_path)), ["base", "tone", "both"])
    return build(config, tmp_path / "out").output


def failed(result: Verification) -> set[str]:
    return {e.use_case for e in result.errors if not e.ok}


def edit_manifest(pack: Path, edit: Callable[[Document], object]) -> None:
    edit_json(pack / "pack.json", edit)


def record(document: Document, path: str) -> Document:
    (found,) = (f for t in document["targets"] for f in t["files"] if f["path"] == path)
    assert isinstance(found, dict)
    return found


def put_file(pack: Path, path: str, content: bytes) -> None:
    """Replace a file of the pack, and its record to match."""
    (pack / path).write_bytes(content)

    def edit(document: Document) -> None:
        digest = hashlib.sha256(content).hexdigest()
        record(document, path).update(sha256=digest, size=len(content))

    edit_manifest(pack, edit)


@pytest.mark.parametrize("name", ["adapter_only", "rank"])
def test_the_sample_is_verified(name: str, packs: Packs) -> None:
    result = verify(packs(name).output)
    assert result.ok
    assert result.base_exact
    assert result.settings.tolerance == DEFAULT_TOLERANCE
    assert [(e.use_case, e.output) for e in result.errors] == [
        (u, "logits") for u in ("base", "tone", "legal", "style", "both")
    ]
    by_name = {e.use_case: e for e in result.errors}
    assert by_name["base"].error == 0.0
    assert by_name["base"].effect == 0.0
    for use_case in ("tone", "legal", "style", "both"):
        assert by_name[use_case].effect > 1, "random inputs reach the adapters"
        assert by_name[use_case].error < 1e-5 * by_name[use_case].effect


def test_inputs_may_be_given(packs: Packs, tmp_path: Path) -> None:
    pack = packs("adapter_only").output
    from_safetensors = verify(pack, inputs=_one_prompt(tmp_path / "inputs.safetensors"))
    arrays = load_file(tmp_path / "inputs.safetensors")
    np.savez(tmp_path / "inputs.npz", input_ids=arrays["input_ids"])
    assert from_safetensors.ok
    assert verify(pack, inputs=tmp_path / "inputs.npz") == from_safetensors
    assert verify(pack) != from_safetensors


def _one_prompt(path: Path) -> Path:
    save_file({"input_ids": load_file(INPUTS)["input_ids"][:1].copy()}, path)
    return path


def test_seeds_give_other_inputs_and_are_repeatable(packs: Packs) -> None:
    pack = packs("adapter_only").output
    assert verify(pack, seed=1) == verify(pack, seed=1)
    assert verify(pack, seed=1) != verify(pack, seed=2)


def test_weights_of_another_use_case_are_found_by_running(pack: Path) -> None:
    """Hash and shapes are in order: only the numbers tell."""
    tone = (pack / "qairt" / "tone" / "lora_weights.safetensors").read_bytes()
    put_file(pack, "qairt/both/lora_weights.safetensors", tone)
    result = verify(pack)
    assert not result.ok
    assert failed(result) == {"both"}
    assert result.base_exact


@pytest.mark.parametrize("factor", [1.01, 0.99])
def test_a_strength_that_is_wrong_by_1_percent_is_found(factor: float, pack: Path) -> None:
    """In E, which the reference does not use."""
    path = "qairt/both/lora_weights.safetensors"
    tensors = load_file(pack / path)
    tensors["lora_alpha.expansion"][0] *= np.float32(factor)
    save_file(tensors, pack / "changed")
    put_file(pack, path, (pack / "changed").read_bytes())
    result = verify(pack)
    assert failed(result) == {"both"}
    (error,) = (e for e in result.errors if e.use_case == "both")
    assert 1e-3 * error.effect < error.error < 0.1 * error.effect
    assert verify(pack, tolerance=0.1).ok


def test_an_alpha_in_the_manifest_that_is_wrong_by_1_percent_is_found(pack: Path) -> None:
    """The host feeds it; the reference takes the strengths from the configuration."""

    def edit(document: Document) -> None:
        document["use_cases"][2]["slots"][0]["alpha"] *= 1.01

    edit_manifest(pack, edit)
    assert failed(verify(pack)) == {"both"}


def test_use_cases_that_the_configuration_does_not_have(pack: Path) -> None:
    edit_manifest(pack, lambda d: d["use_cases"][2].update(slots=d["use_cases"][1]["slots"]))
    with pytest.raises(VerificationError, match="disagree on the adapters of use case 'both'"):
        verify(pack)


def test_a_configuration_that_was_changed(pack: Path) -> None:
    path = sample_of(pack) / "lora_config.yaml"
    path.write_text(path.read_text(encoding="utf-8") + "# later\n", encoding="utf-8")
    with pytest.raises(VerificationError, match="the configuration is not the one that the pack"):
        verify(pack)


def test_a_pack_that_was_built_from_an_object(tmp_path: Path) -> None:
    config = read_lora_config(keep_use_cases(make_float(copy_sample(tmp_path)), ["base", "tone"]))
    assert verify(build(config, tmp_path / "out").output).ok


def test_a_scale_in_the_manifest_that_is_wrong_is_found_in_the_rank_layout(tmp_path: Path) -> None:
    """There the host multiplies with it."""
    config = keep_use_cases(make_float(copy_sample(tmp_path)), ["base", "tone"])
    pack = build(config, tmp_path / "out", BuildOptions(alpha_layout="rank")).output
    assert verify(pack).ok

    def edit(document: Document) -> None:
        document["use_cases"][1]["slots"][0]["scale"] *= 1.01

    edit_manifest(pack, edit)
    assert failed(verify(pack)) == {"tone"}


def test_a_branch_that_is_not_zero_at_first_is_found(pack: Path) -> None:
    zeros = bytearray((pack / "qairt" / "lora_zeros.data").read_bytes())
    zeros[:] = np.full(len(zeros) // 4, 0.5, np.float32).tobytes()
    put_file(pack, "qairt/lora_zeros.data", bytes(zeros))
    # alpha is 0 in this check, so that the branches stay off: the base is still exact.
    assert verify(pack).base_exact


@pytest.mark.parametrize(
    "path",
    [
        "qairt/model.onnx",
        "qairt/model.data",
        "qairt/lora_zeros.data",
        "qairt/tone/lora_weights.safetensors",
    ],
)
def test_a_flipped_byte_is_refused(path: str, pack: Path) -> None:
    content = bytearray((pack / path).read_bytes())
    content[len(content) // 2] ^= 1
    (pack / path).write_bytes(content)
    with pytest.raises(VerificationError) as caught:
        verify(pack)
    assert caught.value.message == (
        "a file of the pack was changed after it was built: its SHA-256 differs"
    )
    assert caught.value.where.file == pack / path


def test_a_missing_file_is_refused(pack: Path) -> None:
    path = pack / "qairt" / "both" / "lora_weights.safetensors"
    path.unlink()
    with pytest.raises(InputMissingError, match="a file of the pack is missing") as caught:
        verify(pack)
    assert caught.value.where.file == path


def sample_of(pack: Path) -> Path:
    return pack.parent / "sample"


def test_a_base_that_was_moved(pack: Path) -> None:
    shutil.move(sample_of(pack) / "model", pack.parent / "moved")
    with pytest.raises(InputMissingError) as caught:
        verify(pack)
    assert caught.value.message == "the base graph that the pack was built from is not there"
    assert caught.value.where.file == sample_of(pack) / "model" / "model.onnx"
    assert caught.value.hint == "say where it is with --base or --sources, or build again"
    assert verify(pack, base=pack.parent / "moved" / "model.onnx").ok


def test_sources_that_were_moved(pack: Path) -> None:
    moved = pack.parent / "moved" / "sample"
    moved.parent.mkdir()
    shutil.move(sample_of(pack), moved)
    with pytest.raises(InputMissingError, match="the base graph that the pack was built from"):
        verify(pack)
    copied = Path(shutil.copytree(pack, pack.parent / "elsewhere" / "deeper" / "copy"))
    for folder in (pack, copied):
        assert verify(folder, sources=moved).ok
    (moved / "adapters" / "tone" / "adapter_config.json").unlink()
    with pytest.raises(InputMissingError) as caught:
        verify(pack, sources=moved)
    assert caught.value.where.file == moved / "adapters" / "tone" / "adapter_config.json"


def test_a_base_that_was_changed(pack: Path) -> None:
    path = sample_of(pack) / "model" / "model.onnx"
    path.write_bytes(path.read_bytes() + b"\x00")
    with pytest.raises(VerificationError, match="not the one that the pack was built from"):
        verify(pack)


def test_weights_of_the_base_that_were_changed(pack: Path) -> None:
    path = sample_of(pack) / "model" / "model.data"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(VerificationError, match="the weights of the base graph are not those") as e:
        verify(pack)
    assert e.value.where.file == path
    path.unlink()
    with pytest.raises(InputMissingError, match="the weights of the base graph are not there"):
        verify(pack)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_an_adapter_that_was_changed(name: str, pack: Path) -> None:
    path = sample_of(pack) / "adapters" / "tone" / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(VerificationError, match="the adapter 'tone' is not the one") as caught:
        verify(pack)
    assert caught.value.where.file == path


def test_a_manifest_without_the_adapter_s_file(pack: Path) -> None:
    def edit(document: Document) -> None:
        document["inputs"] = [i for i in document["inputs"] if i.get("name") != "tone"]

    edit_manifest(pack, edit)
    with pytest.raises(VerificationError, match="does not tell the weights of adapter 'tone'"):
        verify(pack)


def test_a_pack_for_another_target(pack: Path) -> None:
    edit_manifest(pack, lambda d: d["targets"][0].update(name="tiny"))
    with pytest.raises(VerificationError) as caught:
        verify(pack)
    assert caught.value.message == (
        "nothing can be verified: got a pack for 'tiny', expected one of qairt, onnxruntime, qnn "
        "among its targets"
    )


def test_not_a_pack(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError):
        verify(tmp_path)


def test_a_target_that_the_pack_does_not_have(packs: Packs) -> None:
    with pytest.raises(ConfigError, match="the pack holds nothing for the target 'qair'") as caught:
        verify(packs("adapter_only").output, targets=["qair"])
    assert caught.value.hint == "did you mean 'qairt'?"


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"ids": np.zeros((1, 4), np.int64)}, "the graph has no input 'ids'"),
        ({}, "the inputs lack 'input_ids'"),
        (
            {"input_ids": np.zeros((1, 4), np.float32)},
            "input 'input_ids' is float32, expected int64",
        ),
        (
            {"input_ids": np.full((1, 4), 100_000)},
            "ONNX Runtime cannot run the graph",
        ),
    ],
)
def test_wrong_inputs(
    arrays: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]],
    text: str,
    packs: Packs,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    np.savez(tmp_path / "in.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(VerificationError) as caught:
        verify(packs("adapter_only").output, inputs=tmp_path / "in.npz")
    assert caught.value.message.startswith(text)
    assert capfd.readouterr() == ("", ""), "the engine's own log stays silent"


def test_unreadable_inputs(packs: Packs, tmp_path: Path) -> None:
    pack = packs("adapter_only").output
    for name in ("in.npz", "in.safetensors", "in.pkl"):
        (tmp_path / name).write_bytes(b"\x80\x04 not what it says")
    for name, text in (
        ("in.npz", "the inputs cannot be read"),
        ("in.safetensors", "the inputs cannot be read"),
        ("in.pkl", "inputs come as .npz or .safetensors, got '.pkl'"),
        ("absent.npz", "there is no file with inputs here"),
    ):
        with pytest.raises(LoraQuantError) as caught:
            verify(pack, inputs=tmp_path / name)
        assert text in caught.value.message
        assert caught.value.where.file == tmp_path / name


@pytest.mark.parametrize("style", ["path", "raw", "weight", "flat"])
@pytest.mark.parametrize("external", [False, True])
def test_every_way_of_naming_nodes(style: str, external: bool, tmp_path: Path) -> None:
    """Also nodes without a name, and weights inside of the graph's file."""
    result = verify(tiny_pack(attention(style=style), tmp_path, external=external))
    assert result.ok
    assert result.errors[0].effect > 0.1


def tiny_pack(graph: GraphBuilder, folder: Path, *, external: bool = False) -> Path:
    """A pack with one adapter on q_proj of the first layer, in the use case `tone`."""
    graph.save(folder / "model.onnx", external=external)
    write(folder / "tone", pair(Q0, features=(8, 8)), target_modules=["q_proj"])
    config = folder / "lora_config.yaml"
    config.write_text(
        "adapter: [{name: tone, lora_config: tone}]\n"
        "use-case:\n"
        "- {name: tone, adapter_names: [tone], adapter_alphas: [-1.5], model_name: model.onnx}\n",
        encoding="utf-8",
    )
    return build(config, folder / "out").output


def one_projection(op: str, shape: Shape, dtype: str, **attributes: Any) -> GraphBuilder:
    """Its only output is `op` of what the projection gives."""
    graph = GraphBuilder()
    x = graph.input("x", (1, 16, 8))
    y = graph.matmul("/model/layers.0/self_attn/q_proj/MatMul", x, in_features=8, out_features=8)
    graph.output(graph.node(op, [y], "last", **attributes), shape, dtype)
    return graph


def test_integer_outputs_are_compared_by_equality(tmp_path: Path) -> None:
    pack = tiny_pack(one_projection("ArgMax", (1, 16), "int64", axis=-1, keepdims=0), tmp_path)
    (error,) = verify(pack).errors
    assert (error.exact, error.error, error.bound, error.magnitude) == (True, 0, 0, 16)
    assert error.effect > 0
    weights = load_file(pack / "qairt" / "tone" / "lora_weights.safetensors")
    save_file({name: np.zeros_like(v) for name, v in weights.items()}, tmp_path / "zeros")
    put_file(pack, "qairt/tone/lora_weights.safetensors", (tmp_path / "zeros").read_bytes())
    result = verify(pack)
    assert failed(result) == {"tone"}
    assert result.errors[0].error == error.effect, "what the adapter no longer changes"


def test_outputs_without_elements_are_no_verification(tmp_path: Path) -> None:
    graph = attention()
    pack = tiny_pack(graph, tmp_path)
    np.savez(tmp_path / "in.npz", x=np.zeros((1, 0, 8), np.float32))
    with pytest.raises(VerificationError, match="nothing can be compared") as caught:
        verify(pack, inputs=tmp_path / "in.npz")
    assert caught.value.where.use_case == "tone"
    assert caught.value.hint == "give inputs that are not empty with --inputs FILE"


def test_adapters_that_reach_no_output_are_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pack = tiny_pack(attention(), tmp_path)
    assert verify(pack).without_effect == ()
    np.savez(tmp_path / "in.npz", x=np.zeros((1, 4, 8), np.float32))
    result = verify(pack, inputs=tmp_path / "in.npz")
    assert result.ok
    assert result.without_effect == ("tone",)
    show_verification(result, as_json=False)
    note = "note use case 'tone': the adapters change nothing at the outputs for these inputs"
    assert note in capfd.readouterr().out.splitlines()
    show_verification(result, as_json=True)
    assert json.loads(capfd.readouterr().out)["details"]["without_effect"] == ["tone"]


def test_bfloat16_is_refused_with_the_reason(tmp_path: Path) -> None:
    graph = one_projection("Cast", (1, 16, 8), "bfloat16", to=TensorProto.BFLOAT16)
    pack = tiny_pack(graph, tmp_path)
    edit_manifest(pack, lambda d: d["tensors"][0].update(dtype="bfloat16"))
    with pytest.raises(VerificationError) as caught:
        verify(pack)
    assert caught.value.message == (
        "ONNX Runtime on the CPU cannot run this graph: got bfloat16, expected float32 or "
        "float16, in LoRA weight 'model.layers.0.self_attn.q_proj.lora_A.weight', "
        "output 'last_output_0'"
    )
    assert caught.value.where.file == tmp_path / "model.onnx"
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("verify a pack that is built from a float32 export")


def test_a_length_that_nothing_tells_is_named(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("batch", "sequence", "width"))
    y = graph.matmul("/model/layers.0/self_attn/q_proj/MatMul", x, in_features=8, out_features=8)
    graph.output(y, ("batch", "sequence", 8))
    with pytest.raises(VerificationError, match="ONNX Runtime cannot run the graph") as caught:
        verify(tiny_pack(graph, tmp_path))
    assert caught.value.hint == (
        "give inputs with --inputs FILE: the graph does not tell the lengths of axis 2 (width) of "
        "input 'x'; each was taken to be 1"
    )


def test_lengths_of_caches_are_those_of_the_outputs() -> None:
    graph = GraphBuilder()
    graph.input("past_key_values.0.key", ("batch", "heads", "past_sequence", "width"))
    graph.output("present.0.key", ("batch", 3, "total_sequence", 16))
    (cache,) = random_inputs(graph.model(), 0).values()
    assert cache.shape == (1, 3, 0, 16)
    assert guessed_axes(graph.model()) == ()


def test_the_manifest_is_not_written_to(packs: Packs) -> None:
    pack = packs("adapter_only").output
    before = (pack / "pack.json").read_bytes()
    verify(pack)
    assert (pack / "pack.json").read_bytes() == before
    json.loads(before)
