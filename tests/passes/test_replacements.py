"""Parameters that adapters bring anew, in the packs of the use cases with and without them.

Outputs of the kinds' fixtures are compared with PEFT's as in test_kinds_compiled. What is copied
is compared bit for bit.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from lora_quant.api import BuildResult
from lora_quant.errors import AdapterError, AttachPointError, UnsupportedAdapterError
from lora_quant.findings import Severity
from tests.adapters.builders import config, write
from tests.builders import DTYPES, GraphBuilder, save
from tests.mixes import KINDS, graph_of, mixed, outputs
from tests.run_graph import largest, run_use_case

Array = NDArray[Any]
RELATIVE = 1e-5
CASES: dict[str, dict[str, Any]] = json.loads((KINDS / "cases.json").read_text(encoding="utf-8"))
REPLACING = sorted(
    [name for name, case in CASES.items() if case.get("class") == "replacement"]
    + ["lora_bias_all", "lora_bias_all_norms", "lora_bias_only", "lora_dora_bias"]
    + ["lora_embedding_table", "lora_lm_head_table"]
)
PREFIX = "base_model.model."
VOCABULARY, DIM = 9, 4
TABLE, HEAD, NORM, BIAS = (
    "model.embed_tokens.weight",
    "lm_head.weight",
    "model.norm.weight",
    "model.fc.bias",
)
SHAPES = {TABLE: (VOCABULARY, DIM), HEAD: (VOCABULARY, DIM), NORM: (DIM,), BIAS: (DIM,)}


def fixture(case: str) -> tuple[dict[str, Array], Array]:
    expected = load_file(KINDS / case / "expected.safetensors")
    return {"input_ids": expected["input_ids"].astype(np.int64)}, expected["logits"]


def pack_weights(result: BuildResult, use_case: str) -> dict[str, Array]:
    return load_file(result.output / "qairt" / use_case / "lora_weights.safetensors")


def replaced(result: BuildResult) -> set[str]:
    return {tensor.name for tensor in result.manifest.tensors if tensor.role == "replaced"}


def initializers(graph: Path) -> dict[str, Array]:
    model = onnx.load(str(graph))
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize("case", REPLACING)
@pytest.mark.parametrize("external", [False, True], ids=["inline", "external"])
def test_replaced_parameters_give_pefts_outputs(case: str, external: bool, tmp_path: Path) -> None:
    inputs, theirs = fixture(case)
    source = graph_of(CASES[case]["base"])
    graph = save(onnx.load(str(source)), tmp_path / "base.onnx", external=external)
    result = mixed(tmp_path / "pack", graph, {"it": {case: 1.0}})
    allowed = RELATIVE * float(np.abs(theirs).max())
    assert largest(outputs(result, "it", inputs), theirs) <= allowed
    (own,) = run_use_case(source, None, inputs).values()
    np.testing.assert_array_equal(outputs(result, "base", inputs), own)
    stored, kept = initializers(source), pack_weights(result, "base")
    names = replaced(result)
    assert names
    for name in names:
        np.testing.assert_array_equal(kept[name], stored[name])
        assert not np.array_equal(pack_weights(result, "it")[name], stored[name])


def model(dtype: str = "float32", *, tied: bool = False) -> GraphBuilder:
    """ids -> embed_tokens -> norm -> fc (with bias) -> lm_head, which may share the table."""
    graph = GraphBuilder(dtype)
    ids = graph.input("ids", ("batch", "tokens"), "int64")
    table = graph.weight(TABLE, VOCABULARY, DIM)
    x = graph.node("Gather", [table, ids], "/model/embed_tokens/Gather")
    x = graph.node("Mul", [x, graph.weight(NORM, DIM)], "/model/norm/Mul")
    x = graph.matmul(
        "/model/fc/MatMul", x, in_features=DIM, out_features=DIM, weight="model.fc.weight"
    )
    x = graph.node("Add", [x, graph.weight(BIAS, DIM)], "/model/fc/Add")
    if tied:
        flipped = graph.node("Transpose", [table], "/lm_head/Transpose", perm=[1, 0])
        x = graph.node("MatMul", [x, flipped], "/lm_head/MatMul")
    else:
        x = graph.matmul(
            "/lm_head/MatMul", x, in_features=DIM, out_features=VOCABULARY, weight=HEAD
        )
    graph.output(x, ("batch", "tokens", VOCABULARY))
    return graph


def values_of(*parameters: str, seed: int = 1) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=SHAPES[name]).astype(np.float32) for name in parameters}


def adapter(folder: Path, parameters: Mapping[str, Array], **fields: Any) -> Path:
    """A LoRA of `model.fc` that brings parameters, under the names that PEFT gives them."""
    rng = np.random.default_rng(7)
    tensors = {
        f"{PREFIX}model.fc.lora_{letter}.weight": rng.normal(size=shape).astype(np.float32)
        for letter, shape in (("A", (2, DIM)), ("B", (DIM, 2)))
    }
    for name, values in parameters.items():
        own = name.replace(".fc.bias", ".fc.base_layer.bias")
        tensors[PREFIX + own] = values
    saved = [name.removesuffix(".weight").removeprefix("model.") for name in parameters]
    given = {"target_modules": ["fc"], "r": 2, "modules_to_save": saved}
    if BIAS in parameters:
        given |= {"modules_to_save": None, "bias": "lora_only"}
    return write(folder, tensors, **{**given, **fields})


def built(folder: Path, graph: Path, parameters: Mapping[str, Array], **fields: Any) -> BuildResult:
    path = adapter(folder / "tone", parameters, **fields)
    return mixed(folder / "pack", graph, {"it": {"tone": 1.0}}, paths={"tone": path})


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("external", [False, True], ids=["inline", "external"])
@pytest.mark.parametrize("parameters", [(HEAD,), (TABLE, NORM), (BIAS,)], ids=str)
def test_values_are_those_of_the_adapter_in_the_bases_dtype(
    dtype: str, external: bool, parameters: tuple[str, ...], tmp_path: Path
) -> None:
    base = model(dtype)
    graph = base.save(tmp_path / "base.onnx", external=external)
    given = values_of(*parameters)
    result = built(tmp_path, graph, given)
    assert replaced(result) == set(parameters)
    for name, values in given.items():
        # a MatMul stores the head as [in, out]
        stored = values.T if name == HEAD else values
        ours = pack_weights(result, "it")[name]
        assert ours.dtype == np.dtype(DTYPES[dtype])
        np.testing.assert_array_equal(ours, stored.astype(DTYPES[dtype]))
        np.testing.assert_array_equal(pack_weights(result, "base")[name], base.weights[name])


@pytest.mark.parametrize("size", [7e4, -1e30])
def test_values_that_the_bases_dtype_cannot_hold_are_refused(size: float, tmp_path: Path) -> None:
    graph = model("float16").save(tmp_path / "base.onnx")
    given = {NORM: np.array([1, size, 2, 3], np.float32)}
    with pytest.raises(AdapterError) as caught:
        built(tmp_path, graph, given)
    error = caught.value
    assert error.message == (
        f"values of model.norm.weight reach {abs(size):.4g}, more than float16 can hold, which is "
        "the type of the base graph's weights"
    )
    assert (error.where.adapter, error.where.tensor) == ("tone", f"{PREFIX}{NORM}")
    assert error.hint == "export the base graph in float32 or bfloat16"
    assert not (tmp_path / "pack").exists()


def test_a_file_in_half_precision_is_widened(tmp_path: Path) -> None:
    graph = model().save(tmp_path / "base.onnx")
    given = {NORM: np.array([1.1, 2.2, 3.3, 4.4], ml_dtypes.bfloat16)}
    result = built(tmp_path, graph, given)
    np.testing.assert_array_equal(pack_weights(result, "it")[NORM], given[NORM].astype(np.float32))


def test_every_use_case_has_the_values_of_its_own_adapter(tmp_path: Path) -> None:
    base = model()
    graph = base.save(tmp_path / "base.onnx")
    first, second = values_of(NORM, seed=1), values_of(HEAD, NORM, seed=2)
    paths = {"a": adapter(tmp_path / "a", first), "b": adapter(tmp_path / "b", second)}
    given = {"one": {"a": 1.0}, "two": {"b": 1.0}}
    result = mixed(tmp_path / "pack", graph, given, paths=paths)
    one, two, none = (pack_weights(result, name) for name in ("one", "two", "base"))
    np.testing.assert_array_equal(one[NORM], first[NORM])
    np.testing.assert_array_equal(two[NORM], second[NORM])
    np.testing.assert_array_equal(none[NORM], base.weights[NORM])
    np.testing.assert_array_equal(one[HEAD], base.weights[HEAD])
    np.testing.assert_array_equal(two[HEAD], second[HEAD].T)


def test_a_table_beside_an_adapted_embedding_that_is_the_bases_is_not_replaced(
    tmp_path: Path,
) -> None:
    """PEFT saves the whole table beside the factors of an embedding, changed or not."""
    copy = tmp_path / "lora_embedding_table"
    shutil.copytree(KINDS / "lora_embedding_table", copy)
    table = load_file(KINDS / "bases" / "llama" / "weights.safetensors")[TABLE]
    tensors = load_file(copy / "adapter_model.safetensors")
    (name,) = (name for name in tensors if name.endswith("embed_tokens.base_layer.weight"))
    assert not np.array_equal(tensors[name], table)
    save_file({**tensors, name: table}, copy / "adapter_model.safetensors")
    paths = {"tone": copy}
    result = mixed(tmp_path / "pack", graph_of("llama"), {"it": {"tone": 1.0}}, paths=paths)
    assert replaced(result) == set()
    (note,) = (f for f in result.findings if f.rule == "adapter/unchanged-parameter")
    assert note.severity is Severity.NOTE
    assert note.message == (f"the adapter brings {TABLE!r} as the base has it: it is not replaced")
    assert note.where.adapter == "tone"


def test_a_table_that_differs_in_the_last_bit_is_replaced(tmp_path: Path) -> None:
    copy = tmp_path / "lora_embedding_table"
    shutil.copytree(KINDS / "lora_embedding_table", copy)
    table = load_file(KINDS / "bases" / "llama" / "weights.safetensors")[TABLE]
    table[-1, -1] = np.nextafter(table[-1, -1], np.float32(2))
    tensors = load_file(copy / "adapter_model.safetensors")
    (name,) = (name for name in tensors if name.endswith("embed_tokens.base_layer.weight"))
    save_file({**tensors, name: table}, copy / "adapter_model.safetensors")
    paths = {"tone": copy}
    result = mixed(tmp_path / "pack", graph_of("llama"), {"it": {"tone": 1.0}}, paths=paths)
    (only,) = replaced(result)
    np.testing.assert_array_equal(pack_weights(result, "it")[only], table)


def test_a_head_that_is_saved_as_the_base_has_it_is_replaced_all_the_same(tmp_path: Path) -> None:
    """modules_to_save is what the training asked for; only tables beside factors are by the way."""
    base = model()
    graph = base.save(tmp_path / "base.onnx")
    result = built(tmp_path, graph, {HEAD: np.ascontiguousarray(base.weights[HEAD].T)})
    assert replaced(result) == {HEAD}


def test_rows_are_put_into_the_table_and_its_tied_copy(tmp_path: Path) -> None:
    case = "lora_trainable_tokens_tied"
    source = graph_of("llama_tied")
    result = mixed(tmp_path / "pack", source, {"it": {case: 1.0}})
    rows = json.loads((KINDS / case / "adapter_config.json").read_text("utf-8"))
    trained = rows["trainable_token_indices"]
    trained = trained["embed_tokens"] if isinstance(trained, dict) else trained
    stored, names = initializers(source), replaced(result)
    assert len(names) == 2
    tables = []
    for name in sorted(names):
        new, old = pack_weights(result, "it")[name], stored[name]
        new, old = (new, old) if len(new) == 32 else (new.T, old.T)
        others = [row for row in range(32) if row not in trained]
        np.testing.assert_array_equal(new[others], old[others])
        assert (new[trained] != old[trained]).any(axis=1).all()
        tables.append(new)
    first, second = tables
    np.testing.assert_array_equal(first, second)
    (note,) = (f for f in result.findings if f.rule == "adapter/tied-rows")
    assert "the base's embeddings are tied, and the rows are replaced in both" in note.message


def test_rows_of_a_base_that_is_not_tied_stay_in_the_table(tmp_path: Path) -> None:
    result = mixed(tmp_path / "pack", graph_of("llama"), {"it": {"lora_trainable_tokens": 1.0}})
    (only,) = replaced(result)
    assert pack_weights(result, "it")[only].shape == (32, 16)
    assert not any(f.rule == "adapter/tied-rows" for f in result.findings)


def test_one_initializer_for_both_is_replaced_by_one_value(tmp_path: Path) -> None:
    graph = model(tied=True).save(tmp_path / "base.onnx")
    given = values_of(TABLE)
    result = built(tmp_path, graph, {**given, HEAD: given[TABLE]})
    assert replaced(result) == {TABLE}
    np.testing.assert_array_equal(pack_weights(result, "it")[TABLE], given[TABLE])


def test_one_initializer_cannot_hold_two_values(tmp_path: Path) -> None:
    graph = model(tied=True).save(tmp_path / "base.onnx")
    with pytest.raises(AttachPointError) as caught:
        built(tmp_path, graph, values_of(TABLE, HEAD))
    error = caught.value
    assert error.message == (
        f"the adapter replaces {HEAD!r} and {TABLE!r} by different values, but the graph stores "
        "them once"
    )
    assert (error.where.adapter, error.where.tensor) == ("tone", TABLE)
    assert error.hint == "export the graph from a model whose embeddings are not tied"


@pytest.mark.parametrize(("parameter", "other"), [(TABLE, "lm_head"), (HEAD, "model.embed_tokens")])
def test_one_of_two_tied_parameters_is_not_replaced_behind_the_others_back(
    parameter: str, other: str, tmp_path: Path
) -> None:
    graph = model(tied=True).save(tmp_path / "base.onnx")
    with pytest.raises(AttachPointError, match=f"once for several modules, among them '{other}'"):
        built(tmp_path, graph, values_of(parameter))


def of_the_head(folder: Path, kind: str, table: Array | None, **fields: Any) -> Path:
    """An adapter of `lm_head`, beside the table that PEFT saves with an output layer."""
    rng = np.random.default_rng(8)
    head = f"{PREFIX}lm_head."
    given: dict[str, Any] = {"target_modules": ["lm_head"], "r": 2}
    tensors: dict[str, Array] = {}
    if kind == "HRA":
        tensors = {f"{head}hra_u": rng.normal(size=(DIM, 2)).astype(np.float32)}
        given = {**dict.fromkeys(config()), **given, "peft_type": "HRA"}
    else:
        for letter, shape in (("A", (2, DIM)), ("B", (VOCABULARY, 2))):
            tensors[f"{head}lora_{letter}.weight"] = rng.normal(size=shape).astype(np.float32)
    if kind == "DoRA":
        name = f"{head}lora_magnitude_vector.weight"
        tensors[name] = rng.uniform(1, 2, size=VOCABULARY).astype(np.float32)
        given["use_dora"] = True
    if kind == "PiSSA":
        given["init_lora_weights"] = "pissa"
    if table is not None:
        tensors[f"{head}base_layer.weight"] = table
    return write(folder, tensors, **{**given, **fields})


@pytest.mark.parametrize("kind", ["DoRA", "HRA", "PiSSA"])
@pytest.mark.parametrize("merge", [None, "it"])
def test_a_weight_that_the_update_is_computed_from_is_not_replaced_beside_it(
    kind: str, merge: str | None, tmp_path: Path
) -> None:
    """PEFT computes such an update from the new weight, which is not in the graph."""
    base = model()
    graph = base.save(tmp_path / "base.onnx")
    table = np.ascontiguousarray(base.weights[HEAD].T)
    use_cases = {"it": {"tone": 1.0}}
    kept = {"tone": of_the_head(tmp_path / "kept", kind, table)}
    result = mixed(tmp_path / "pack", graph, use_cases, paths=kept, merge=merge)
    assert [f.rule for f in result.findings if f.rule == "adapter/unchanged-parameter"]
    table[-1, -1] = np.nextafter(table[-1, -1], np.float32(2))
    new = {"tone": of_the_head(tmp_path / "new", kind, table)}
    with pytest.raises(UnsupportedAdapterError) as caught:
        mixed(tmp_path / "refused", graph, use_cases, paths=new, merge=merge)
    error = caught.value
    assert error.message == (
        f"the adapter replaces {HEAD!r}, from which its update of module 'lm_head' is computed, "
        "expected the values that the graph has"
    )
    assert (error.where.adapter, error.where.module) == ("tone", "lm_head")
    assert error.where.tensor == f"{PREFIX}lm_head.base_layer.weight"
    assert error.hint == (
        "export a base that holds the new values, or, if they were not trained, save the adapter "
        "without them (save_embedding_layers=False)"
    )


def test_a_weight_beside_plain_low_rank_is_replaced(tmp_path: Path) -> None:
    graph = model().save(tmp_path / "base.onnx")
    table = values_of(HEAD)[HEAD]
    paths = {"tone": of_the_head(tmp_path / "tone", "LoRA", table)}
    result = mixed(tmp_path / "pack", graph, {"it": {"tone": 1.0}}, paths=paths)
    np.testing.assert_array_equal(pack_weights(result, "it")[HEAD], table.T)


@pytest.mark.parametrize("tied", ["one initializer", "two initializers"])
def test_rows_that_ties_put_into_a_weight_are_not_replaced_where_the_update_is_computed_from_it(
    tied: str, tmp_path: Path
) -> None:
    base = model(tied=tied == "one initializer")
    if HEAD in base.weights:
        base.weights[HEAD][...] = base.weights[TABLE].T
    graph = base.save(tmp_path / "base.onnx")
    path = of_the_head(
        tmp_path / "tone", "DoRA", None, trainable_token_indices={"embed_tokens": [1, 2]}
    )
    tensors = load_file(path / "adapter_model.safetensors")
    name = f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta"
    tensors[name] = np.ones((2, DIM), np.float32)
    save_file(tensors, path / "adapter_model.safetensors")
    with pytest.raises(UnsupportedAdapterError) as caught:
        mixed(tmp_path / "pack", graph, {"it": {"tone": 1.0}}, paths={"tone": path})
    error = caught.value
    assert error.message == (
        f"the adapter replaces {TABLE!r}, from which its update of module 'lm_head' is computed, "
        "expected the values that the graph has"
    )
    assert error.hint == "export a base that holds the new values"


@pytest.mark.parametrize(
    ("parameter", "shape"), [(NORM, (5,)), (TABLE, (8, DIM)), (HEAD, (VOCABULARY, 3))]
)
def test_a_parameter_of_another_shape_is_refused(
    parameter: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    graph = model().save(tmp_path / "base.onnx")
    with pytest.raises(AttachPointError) as caught:
        built(tmp_path, graph, {parameter: np.ones(shape, np.float32)})
    error = caught.value
    assert error.message == (
        f"the adapter's {parameter!r} has shape {list(shape)}, the graph's has "
        f"{list(SHAPES[parameter])}"
    )
    assert (error.where.adapter, error.where.module) == ("tone", parameter)
    assert error.hint == "the adapter was trained on another base model"


@pytest.mark.parametrize(
    ("rows", "width", "text"),
    [
        ([0, 9], DIM, rf"the adapter replaces row 9 of '{TABLE}', which has 9 rows in the graph"),
        ([0, 8], 3, r"has shape \[2, 3\], the graph's has"),
    ],
    ids=["beyond the table", "another width"],
)
def test_rows_that_the_table_does_not_have_are_refused(
    rows: list[int], width: int, text: str, tmp_path: Path
) -> None:
    graph = model().save(tmp_path / "base.onnx")
    path = adapter(tmp_path / "tone", {}, trainable_token_indices={"embed_tokens": rows})
    tensors = load_file(path / "adapter_model.safetensors")
    name = f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta"
    tensors[name] = np.ones((len(rows), width), np.float32)
    save_file(tensors, path / "adapter_model.safetensors")
    with pytest.raises(AttachPointError, match=text):
        mixed(tmp_path / "pack", graph, {"it": {"tone": 1.0}}, paths={"tone": path})


def test_a_parameter_that_the_graph_does_not_have_is_refused(tmp_path: Path) -> None:
    graph = model().save(tmp_path / "base.onnx")
    given = {"model.nrm.weight": np.ones(DIM, np.float32)}
    with pytest.raises(AttachPointError, match=r"the graph has no parameter 'model\.nrm\.weight'"):
        built(tmp_path, graph, given)


def test_not_a_number_is_refused(tmp_path: Path) -> None:
    graph = model().save(tmp_path / "base.onnx")
    with pytest.raises(AdapterError) as caught:
        built(tmp_path, graph, {NORM: np.array([1, np.nan, 1, 1], np.float32)})
    assert caught.value.where.adapter == "tone"
