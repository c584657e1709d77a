"""Packs with adapter files, and one thing wrong with them: which rule says so, and where."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from lora_quant.api import build
from lora_quant.config.lora_config import LoraConfig
from lora_quant.config.manifest import read_manifest
from lora_quant.config.manifest_seal import seal_manifest
from lora_quant.config.options import BuildOptions
from lora_quant.findings import Finding
from lora_quant.graph.files.model_file import load_model
from lora_quant.validation.documents.schema_check import Depth
from lora_quant.validation.pack.check import check_pack
from lora_quant.validation.pack.overridable import check_overridable
from lora_quant.validation.pack.view import PackView
from tests.runtime.kinds import pack_of
from tests.runtime.test_verify_prompts import prompt_pack
from tests.validation.packs import edit_manifest, flip_byte, manifest_files, one, rehash, rules

Tensors = dict[str, NDArray[Any]]
Document = dict[str, Any]

ALPHA = "lora_alpha"
Q = "model.layers.0.self_attn.q_proj"
A = f"{Q}.lora_A.weight"
B = f"{Q}.lora_B.weight"
TONE = "onnxruntime/tone.onnx_adapter"
BOTH = "onnxruntime/both.onnx_adapter"
EXPANSION = f"{ALPHA}.expansion_0"
ROLE = "adapter"


@pytest.fixture(scope="module")
def made(small_config: LoraConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack that nobody changes."""
    output = tmp_path_factory.mktemp("adapters") / "pack"
    build(small_config, output, BuildOptions(targets=("onnxruntime",)))
    return output


@pytest.fixture
def pack(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "Päck of mine"))


def check_quickly(pack: Path) -> tuple[Finding, ...]:
    return check_pack(pack, depth=Depth.QUICK)


def read(path: Path) -> Tensors:
    opened = onnxruntime.AdapterFormat.read_adapter(str(path))
    return {name: value.numpy().copy() for name, value in opened.get_parameters().items()}


def write(path: Path, tensors: Tensors, model_version: int) -> None:
    """By the engine's own writer."""
    adapter = onnxruntime.AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(model_version)
    adapter.set_parameters(
        {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(values))
            for name, values in tensors.items()
        }
    )
    adapter.export_adapter(str(path))


def edit_adapter(
    pack: Path, edit: Callable[[Tensors], object], *, file: str = TONE, version: int | None = None
) -> None:
    """Change a file of a use case, and the manifest to match."""
    manifest = json.loads((pack / "pack.json").read_text(encoding="utf-8"))
    tensors = read(pack / file)
    edit(tensors)
    given = manifest["targets"][0]["fingerprint"] if version is None else version
    write(pack / file, tensors, given)
    rehash(pack)


def with_target(edit: Callable[[Document], object]) -> Callable[[Document], object]:
    return lambda manifest: edit(manifest["targets"][0])


def test_a_pack_as_it_is_built_has_no_findings(made: Path) -> None:
    assert check_pack(made) == ()
    assert {f["role"] for f in manifest_files(made)} == {"graph", "graph-data", "adapter"}
    owners = [f.get("use_case") for f in manifest_files(made) if f["role"] == "adapter"]
    assert owners == ["base", "tone", "both"]


def test_files_that_the_engine_wrote_are_accepted_too(pack: Path) -> None:
    edit_adapter(pack, lambda tensors: None)
    assert check_pack(pack) == ()


CHANGES: dict[str, tuple[Callable[[Tensors], object], set[str], str, str]] = {
    "unknown tensor": (
        lambda t: t.update({"stranger": np.ones(1, np.float32)}),
        {"pack/adapter-tensors"},
        "has 1 tensors that replace no input of the target 'onnxruntime': 'stranger'",
        "",
    ),
    "dtype": (
        lambda t: t.update({f"{A}_quantized": t[f"{A}_quantized"].astype(np.int16)}),
        {"pack/adapter-dtype"},
        "the tensor is int16, expected int8",
        f"{A}_quantized",
    ),
    "shape": (
        lambda t: t.update({f"{B}_scale": t[f"{B}_scale"][:5]}),
        {"pack/adapter-shape"},
        "the tensor has the shape [5], expected [64]",
        f"{B}_scale",
    ),
    "number of axes": (
        lambda t: t.update({EXPANSION: t[EXPANSION][np.newaxis]}),
        {"pack/adapter-shape"},
        "expected [2, -1] with any size for -1",
        EXPANSION,
    ),
    "rank of one tensor": (
        lambda t: t.update({EXPANSION: t[EXPANSION][:, 1:]}),
        {"pack/adapter-rank"},
        "tensors that share the size 'lora_rank_0' have different ones: 3 in ",
        EXPANSION,
    ),
    "a group that is half there": (
        lambda t: t.pop(EXPANSION),
        {"pack/adapter-rank"},
        f"1 in '{EXPANSION} (its default)'; 4 in ",
        "",
    ),
    "codes without their grid": (
        lambda t: [t.pop(f"{B}_scale"), t.pop(f"{B}_zero_point")],
        {"pack/adapter-grid"},
        f"lacks '{B}_scale', '{B}_zero_point': the defaults would be taken",
        B,
    ),
    "a grid without its codes": (
        lambda t: t.pop(f"{A}_quantized"),
        {"pack/adapter-grid", "pack/adapter-rank"},
        f"lacks '{A}_quantized'",
        A,
    ),
    "a factor without the other": (
        lambda t: [t.pop(f"{B}_{part}") for part in ("quantized", "scale", "zero_point")],
        {"pack/adapter-branch", "pack/adapter-rank"},
        f"has one of the factors of '{Q}', and lacks '{B}': the adapter would do nothing there",
        B,
    ),
    "strengths alone": (
        lambda t: [t.pop(name) for name in [*t] if name != ALPHA],
        {"pack/adapter-tensors"},
        "the file replaces no weight, and the use case has adapters",
        "",
    ),
    "strengths": (
        lambda t: t.update({ALPHA: t[ALPHA] * np.float32(0.5)}),
        {"pack/adapter-alpha"},
        "the strengths are [0.5, 0.0], the use case was compiled with [1.0, 0.0]",
        ALPHA,
    ),
    "no strengths": (
        lambda t: t.pop(ALPHA),
        {"pack/adapter-alpha"},
        "the use case would be switched off",
        ALPHA,
    ),
    "values": (
        lambda t: t[EXPANSION].__setitem__((0, 0), np.nan),
        {"pack/adapter-values"},
        "1 of the float32 values are NaN or Inf",
        EXPANSION,
    ),
    "scale of zero": (
        lambda t: t[f"{B}_scale"].__setitem__(slice(2), [0, -1]),
        {"pack/adapter-scale"},
        "2 of the scales are 0 or below",
        f"{B}_scale",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_adapter(name: str, pack: Path) -> None:
    edit, expected, message, tensor = CHANGES[name]
    edit_adapter(pack, edit)
    findings = check_quickly(pack)
    assert set(rules(findings)) == expected
    told = [f for f in findings if message in f.message]
    assert told, [f.message for f in findings]
    assert told[0].where.file == pack / TONE
    assert told[0].where.use_case == "tone"
    assert told[0].where.tensor == tensor or not tensor
    assert told[0].hint


def test_a_file_for_another_graph(pack: Path) -> None:
    edit_adapter(pack, lambda tensors: None, version=5)
    finding = one(check_quickly(pack), "pack/adapter-version")
    assert finding.message.startswith("the file was made for the graph 5, that of the target ")
    assert (finding.where.file, finding.where.use_case) == (pack / TONE, "tone")


def test_a_file_that_is_truncated(pack: Path) -> None:
    file = pack / TONE
    file.write_bytes(file.read_bytes()[:-100])
    rehash(pack)
    finding = one(check_quickly(pack), "pack/adapter-format")
    assert "no sound adapter file of ONNX Runtime" in finding.message
    assert (finding.where.file, finding.where.use_case) == (file, "tone")


def test_a_file_that_holds_a_tensor_twice(pack: Path) -> None:
    file = pack / TONE
    content = file.read_bytes()
    other = A.replace("q_proj", "v_proj").encode()
    assert content.count(other + b"_scale\0") == 1
    file.write_bytes(content.replace(other + b"_scale\0", A.encode() + b"_scale\0"))
    rehash(pack)
    findings = check_quickly(pack)
    assert one(findings, "pack/adapter-twice").where.tensor == f"{A}_scale"


def test_swapped_files_of_two_use_cases(pack: Path) -> None:
    contents = [(pack / name).read_bytes() for name in (TONE, BOTH)]
    for name, content in zip((BOTH, TONE), contents, strict=True):
        (pack / name).write_bytes(content)
    rehash(pack)
    findings = check_quickly(pack)
    assert rules(findings) == ["pack/adapter-alpha"]
    assert {f.where.use_case for f in findings} == {"tone", "both"}


def test_a_graph_that_cannot_be_read_hides_no_adapter(pack: Path) -> None:
    (pack / "onnxruntime" / "model.onnx").write_bytes(b"no graph")
    edit_adapter(pack, lambda tensors: tensors.pop(ALPHA))
    assert rules(check_quickly(pack)) == ["graph/invalid", "pack/adapter-alpha"]


def test_a_use_case_without_a_file(pack: Path) -> None:
    (pack / TONE).unlink()
    edit_manifest(
        pack, with_target(lambda t: t.update(files=[f for f in t["files"] if f["path"] != TONE]))
    )
    finding = one(check_quickly(pack), "pack/use-case-files")
    assert "has 0 files of the role 'adapter'" in finding.message
    assert finding.where.use_case == "tone"


def test_inputs_without_files(pack: Path) -> None:
    for file in pack.glob("onnxruntime/*.onnx_adapter"):
        file.unlink()
    edit_manifest(
        pack, with_target(lambda t: t.update(files=[f for f in t["files"] if f["role"] != ROLE]))
    )
    finding = one(check_quickly(pack), "pack/adapter-files")
    assert "has inputs and no adapter files that replace them" in finding.message
    assert finding.where.file == pack / "pack.json"


def test_files_without_inputs_hold_nothing(pack: Path) -> None:
    """What they hold of another build is told of each: a graph may have nothing to replace."""
    edit_manifest(pack, with_target(lambda t: t.pop("inputs")))
    findings = [f for f in check_quickly(pack) if f.rule == "pack/adapter-tensors"]
    assert {f.where.use_case for f in findings} >= {"tone", "both"}
    assert "tensors that replace no input of the target 'onnxruntime'" in findings[0].message


INPUT_EDITS: dict[str, tuple[Document, set[str]]] = {
    "name": (
        {"name": "renamed_quantized"},
        {"pack/target-inputs", "pack/graph-overridable", "pack/adapter-tensors"},
    ),
    "dtype": ({"dtype": "uint8"}, {"pack/graph-overridable", "pack/adapter-dtype"}),
    "shape": ({"shape": [63, -1]}, {"pack/graph-overridable", "pack/adapter-shape"}),
    "open size": ({"shape": [64, 8]}, {"pack/graph-overridable", "pack/adapter-shape"}),
    "role": ({"role": "b_weight"}, {"pack/target-inputs"}),
}  # fmt: skip


@pytest.mark.parametrize("name", INPUT_EDITS)
def test_a_recorded_input_that_is_another(name: str, pack: Path) -> None:
    change, expected = INPUT_EDITS[name]

    def edit(target: Document) -> None:
        found = next(i for i in target["inputs"] if i["name"] == f"{A}_quantized")
        found.update(change)

    edit_manifest(pack, with_target(edit))
    findings = check_quickly(pack)
    assert set(rules(findings)) == expected
    for finding in findings:
        if finding.rule == "pack/graph-overridable":
            assert finding.where.file == pack / "onnxruntime" / "model.onnx"
            assert finding.where.tensor == change.get("name", f"{A}_quantized")


def edit_graph(pack: Path, edit: Callable[[onnx.GraphProto], object]) -> None:
    path = pack / "onnxruntime" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    edit(model.graph)
    path.write_bytes(model.SerializeToString())
    rehash(pack)


def test_a_graph_whose_input_has_no_default(pack: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        graph.initializer.remove(next(t for t in graph.initializer if t.name == f"{A}_quantized"))

    edit_graph(pack, edit)
    finding = one(check_quickly(pack), "pack/graph-overridable")
    assert finding.message == "the graph's input of this name has no default"
    assert finding.where.tensor == f"{A}_quantized"


def test_a_graph_that_keeps_a_tensor_to_itself(pack: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        graph.input.remove(next(v for v in graph.input if v.name == f"{A}_quantized"))

    edit_graph(pack, edit)
    finding = one(check_quickly(pack), "pack/graph-overridable")
    assert finding.message == "the graph has no input of this name"


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_a_default_of_another_shape_or_dtype(dtype: str, pack: Path) -> None:
    """onnx.checker finds it first; it does not look into operators of other domains."""
    path = pack / "onnxruntime" / "model.onnx"
    model = load_model(path)
    tensor = next(t for t in model.proto.graph.initializer if t.name == ALPHA)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(3, dtype), ALPHA))
    manifest = read_manifest(pack)
    view = PackView(manifest, pack, pack, pack.joinpath, Depth.QUICK)
    [target] = manifest.targets
    [file] = manifest.files(target.name, role="graph")
    [finding] = check_overridable(view, target, file, model)
    assert finding.rule == "pack/graph-overridable"
    assert finding.message == f"the default is {dtype} [3], expected float32 [2]"
    assert (finding.where.file, finding.where.tensor) == (path, ALPHA)


MANIFEST_EDITS: dict[str, tuple[Callable[[Document], object], str, str]] = {
    "an input twice": (
        lambda t: t["inputs"].append(t["inputs"][3]),
        f"the name '{A}_quantized' is already taken",
        "targets[0].inputs[",
    ),
    "no fingerprint": (
        lambda t: t.pop("fingerprint"),
        "has adapter files and no fingerprint of its graph",
        "targets[0].fingerprint",
    ),
    "a scale of nothing": (
        lambda t: next(i for i in t["inputs"] if i["part"] == "scale").pop("of"),
        "is a scale, and does not say of what",
        "targets[0].inputs[",
    ),
    "no strengths": (
        lambda t: t["inputs"].pop(0),
        "with the role alpha are [], expected ['lora_alpha']",
        "targets[0].inputs",
    ),
    "strengths of another name": (
        lambda t: t.update(
            alpha={"tensor": "other", "layout": "slot", "dtype": "float32", "shape": [2]}
        ),
        "with the role alpha are ['lora_alpha'], expected ['other']",
        "targets[0].inputs",
    ),
}


@pytest.mark.parametrize("name", MANIFEST_EDITS)
def test_a_manifest_that_contradicts_itself(name: str, pack: Path) -> None:
    edit, message, field = MANIFEST_EDITS[name]
    edit_manifest(pack, with_target(edit))
    [finding] = check_quickly(pack)
    assert finding.rule == "document/invalid"
    assert message in finding.message
    assert finding.where.field is not None
    assert finding.where.field.startswith(field)


def test_every_flipped_byte_is_found(pack: Path) -> None:
    """Of each file some bytes, its first and its last among them."""
    generator = random.Random(0)
    for file in sorted(p for p in pack.rglob("*") if p.is_file() and p.name != "pack.json"):
        size = file.stat().st_size
        for offset in {0, size - 1, *(generator.randrange(size) for _ in range(3))}:
            flip_byte(file, offset)
            assert "pack/hash" in rules(check_pack(pack)), (file, offset)
            flip_byte(file, offset)
    assert check_pack(pack) == ()


def test_every_flipped_byte_of_the_record_of_a_target_is_found(pack: Path) -> None:
    """`targets` of the manifest tells what is run. Blanks between its parts tell nothing."""
    path = pack / "pack.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    order = {key: document[key] for key in document if key != "targets"}
    order["targets"] = document["targets"]
    text = seal_manifest(json.dumps(order, separators=(",", ":"))).encode()
    start = text.index(b'"targets":')
    generator = random.Random(1)
    for offset in sorted(generator.sample(range(start, len(text)), 60)):
        path.write_bytes(text)
        flip_byte(path, offset)
        assert check_quickly(pack), text[offset - 30 : offset + 10]
    path.write_bytes(text)
    assert check_pack(pack) == ()


@pytest.mark.parametrize("options", [
    {"lora_weights": "float"},
    {"lora_weights": "int8"},
    {"lora_weights": "int16"},
    {"lora_weights": "int4"},
    {"mode": "none"},
    {"mode": "all"},
    {"alpha_layout": "rank"},
    {"merge": "tone"},
])  # fmt: skip
def test_packs_of_every_form_have_no_errors(
    options: Document, small_config: LoraConfig, tmp_path: Path
) -> None:
    if "merge" in options:
        use_cases = [u.model_copy(update={"encodings": None}) for u in small_config.use_cases]
        small_config = small_config.model_copy(update={"use_cases": use_cases})
    build(small_config, tmp_path / "out", BuildOptions(targets=("onnxruntime",), **options))
    assert [f.message for f in check_pack(tmp_path / "out")] == []


def test_packs_of_the_qnn_target_have_no_errors(small_config: LoraConfig, tmp_path: Path) -> None:
    build(small_config, tmp_path / "out", BuildOptions(targets=("onnxruntime", "qnn", "qairt")))
    assert [f.message for f in check_pack(tmp_path / "out")] == []


KINDS = ("lora_dora", "ia3_feedforward", "ln_tuning_llama", "lora_alora", "lily", "lora_embedding",
         "lora_conv_grouped")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_packs_of_every_kind_have_no_errors(kind: str, tmp_path: Path) -> None:
    pack = pack_of(tmp_path, [kind], BuildOptions(targets=("onnxruntime",)))
    assert [f.message for f in check_pack(pack)] == []


def test_packs_with_a_soft_prompt_have_no_errors(tmp_path: Path) -> None:
    prompt_pack(tmp_path, "prompt_tuning")
    config = tmp_path / "lora_config.yaml"
    build(config, tmp_path / "out", BuildOptions(targets=("onnxruntime",)))
    assert [f.message for f in check_pack(tmp_path / "out")] == []


def test_beside_the_base_its_data_is_looked_at_too(movable_config: Path, tmp_path: Path) -> None:
    output = tmp_path / "packs" / "out"
    build(movable_config, output, BuildOptions(targets=("onnxruntime",), beside_base=True))
    assert check_pack(output) == ()
    data = tmp_path / "model" / "model.data"
    flip_byte(data, 1000)
    finding = one(check_pack(output), "pack/base-data")
    assert finding.where.file == data
    assert "was changed after the build" in finding.message


def add_files(pack: Path, files: dict[str, tuple[str, bytes]]) -> None:
    """More files of the target, by path: role and content."""

    def edit(target: Document) -> None:
        for path, (role, content) in files.items():
            (pack / path).write_bytes(content)
            target["files"].append({"role": role, "path": path, "size": 0, "sha256": "0" * 64})

    edit_manifest(pack, with_target(edit))
    rehash(pack)


def compiled(pack: Path, *, nodes: int = 1, **attributes: Any) -> bytes:
    """A graph as a device's compiler makes it: one node that takes all inputs."""
    model = onnx.load(pack / "onnxruntime" / "model.onnx", load_external_data=False)
    graph = model.graph
    recorded = {value.name for value in graph.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in recorded]
    del graph.initializer[:], graph.node[:], graph.value_info[:]
    graph.initializer.extend(kept)
    [output] = graph.output
    given = {"main_context": 1, "embed_mode": 0, "ep_cache_context": "model_ctx_qnn.bin"}
    node = onnx.helper.make_node(
        "EPContext",
        [value.name for value in graph.input],
        [output.name],
        name="compiled",
        domain="com.microsoft",
        **{**given, **attributes},
    )
    if not nodes:
        node = onnx.helper.make_node("Identity", [ALPHA], [output.name])
        output.CopyFrom(onnx.helper.make_tensor_value_info(output.name, 1, [2]))
    graph.node.append(node)
    if not any(o.domain == "com.microsoft" for o in model.opset_import):
        model.opset_import.add(domain="com.microsoft", version=1)
    return bytes(model.SerializeToString())


CONTEXT = "onnxruntime/model_ctx.onnx"
BINARY = "onnxruntime/model_ctx_qnn.bin"


def test_a_compiled_graph_with_its_binary_and_companions(pack: Path) -> None:
    add_files(
        pack,
        {
            CONTEXT: ("context", compiled(pack)),
            BINARY: ("context-data", b"binary"),
            "onnxruntime/genai_config.json": ("companion", b"{}"),
        },
    )
    assert check_pack(pack) == ()
    for name in (CONTEXT, BINARY, "onnxruntime/genai_config.json"):
        flip_byte(pack / name, 1)
        assert "pack/hash" in rules(check_pack(pack)), name
        flip_byte(pack / name, 1)
        content = (pack / name).read_bytes()
        (pack / name).unlink()
        assert "pack/missing-file" in rules(check_quickly(pack)), name
        (pack / name).write_bytes(content)


@pytest.mark.parametrize("attributes", [{"embed_mode": 1}, {"main_context": 0}])
def test_a_compiled_graph_that_needs_no_file(attributes: Document, pack: Path) -> None:
    add_files(pack, {CONTEXT: ("context", compiled(pack, **attributes))})
    assert check_pack(pack) == ()


@pytest.mark.parametrize("name", ["other.bin", "../model_ctx_qnn.bin", "/etc/passwd", ""])
def test_a_compiled_graph_that_reads_another_file(name: str, pack: Path) -> None:
    content = compiled(pack, ep_cache_context=name)
    add_files(pack, {CONTEXT: ("context", content), BINARY: ("context-data", b"binary")})
    finding = one(check_quickly(pack), "pack/context")
    assert finding.message == (
        f"the graph reads the binary {name!r}, which is not among the pack's: {BINARY!r}"
    )
    assert (finding.where.file, finding.where.node) == (pack / CONTEXT, "compiled")


def test_a_compiled_graph_that_is_none(pack: Path) -> None:
    add_files(pack, {CONTEXT: ("context", compiled(pack, nodes=0))})
    assert "has no EPContext node" in one(check_quickly(pack), "pack/context").message
    (pack / CONTEXT).write_bytes(b"no graph")
    rehash(pack)
    assert one(check_quickly(pack), "graph/invalid").where.file == pack / CONTEXT


def test_a_compiled_graph_without_defaults(pack: Path) -> None:
    model = onnx.load_from_string(compiled(pack))
    del model.graph.initializer[1:]
    add_files(
        pack,
        {
            CONTEXT: ("context", bytes(model.SerializeToString())),
            BINARY: ("context-data", b"binary"),
        },
    )
    assert rules(check_quickly(pack)) == ["pack/graph-overridable"]
