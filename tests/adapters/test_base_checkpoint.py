"""The base's modules from its checkpoint: found by name, read in row blocks, refused if unsure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file

from lora_quant.adapters.base_modules import BaseSizes, whole_weight
from lora_quant.adapters.files import base_checkpoint
from lora_quant.adapters.files.base_checkpoint import BaseCheckpoint
from lora_quant.adapters.files.model_files import is_model_checkpoint, open_model_files
from lora_quant.adapters.files.safetensors_file import SafetensorsFile
from lora_quant.adapters.lowered import ModuleShape
from lora_quant.errors import (
    AdapterError,
    ConfigError,
    InputMissingError,
    LoraQuantError,
    UnsupportedAdapterError,
)

Array = NDArray[Any]
Q = "model.layers.0.self_attn.q_proj"


def array(*shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(dtype)


def shape(module: str = Q, inputs: int | None = 6, out: int | None = 5, **more: Any) -> ModuleShape:
    return ModuleShape(module, 2, inputs, out, **more)


def base(
    path: Path, tensors: Mapping[str, Array], *shapes: ModuleShape, flag: bool = False
) -> BaseCheckpoint:
    save_file(dict(tensors), path / "model.safetensors")
    wanted = {s.module: s for s in shapes or (shape(),)}
    return BaseCheckpoint(open_model_files(path), wanted, fan_in_fan_out=flag)


def refused(modules: BaseCheckpoint, module: str = Q) -> LoraQuantError:
    with pytest.raises(AdapterError) as caught:
        list(modules.tiles(module))
    assert caught.value.hint
    assert caught.value.where.module == module
    return caught.value


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_weight_is_read_in_row_blocks_in_its_own_dtype(
    dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = array(5, 6, dtype=dtype)
    modules = base(tmp_path, {f"{Q}.weight": weight})
    monkeypatch.setattr(base_checkpoint, "_TILE_BYTES", 2 * 6 * weight.itemsize)
    tiles = list(modules.tiles(Q))
    assert [t.rows for t in tiles] == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert {t.values.dtype for t in tiles} == {np.dtype(dtype)}
    np.testing.assert_array_equal(whole_weight(modules, Q), weight.astype(np.float64))


def test_a_row_that_is_larger_than_a_tile_is_a_tile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_checkpoint, "_TILE_BYTES", 1)
    assert len(list(base(tmp_path, {f"{Q}.weight": array(5, 6)}).tiles(Q))) == 5


@given(rows=st.integers(1, 9), data=st.data())
def test_read_rows_is_a_slice_of_read(
    rows: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    path = tmp_path_factory.mktemp("rows") / "x.safetensors"
    save_file({"before": array(3), "x": array(rows, 2, 3), "y": array(1)}, path)
    file = SafetensorsFile(path)
    np.testing.assert_array_equal(file.read_rows("x", start, stop), file.read("x")[start:stop])
    with pytest.raises(IndexError):
        file.read_rows("x", start, rows + 1)


def test_the_storage_order_follows_from_the_sizes(tmp_path: Path) -> None:
    weight = array(6, 5)
    modules = base(tmp_path, {f"{Q}.weight": weight})
    assert modules.sizes(Q) == BaseSizes(6, 5)
    np.testing.assert_array_equal(whole_weight(modules, Q), weight.T)


@pytest.mark.parametrize("flag", [False, True])
def test_a_square_weight_is_stored_as_the_configuration_says(flag: bool, tmp_path: Path) -> None:
    weight = array(6, 6)
    modules = base(tmp_path, {f"{Q}.weight": weight}, shape(out=6), flag=flag)
    np.testing.assert_array_equal(whole_weight(modules, Q), weight.T if flag else weight)


def test_a_square_weight_is_stored_as_the_others_are(tmp_path: Path) -> None:
    weight = array(6, 6)
    modules = base(
        tmp_path,
        {f"{Q}.weight": weight, "model.up.weight": array(6, 9)},
        shape(out=6),
        shape("model.up", 6, 9),
    )
    np.testing.assert_array_equal(whole_weight(modules, Q), weight.T)


def test_an_embedding_is_a_table_by_rows_of_the_vocabulary(tmp_path: Path) -> None:
    table = array(9, 4)
    modules = base(tmp_path, {"emb.weight": table}, shape("emb", 9, 4, is_embedding=True))
    assert modules.sizes("emb") == BaseSizes(9, 4, is_embedding=True)
    np.testing.assert_array_equal(whole_weight(modules, "emb"), table.T)


def test_groups_of_a_convolution_follow_from_the_adapter(tmp_path: Path) -> None:
    weight = array(8, 3, 2, 2)
    told = shape("conv", 6, 8, kernel=(2, 2))
    modules = base(tmp_path, {"conv.weight": weight}, told)
    assert modules.sizes("conv") == BaseSizes(6, 8, (2, 2), groups=2)
    np.testing.assert_array_equal(whole_weight(modules, "conv"), weight)


def test_a_kernel_that_the_adapter_does_not_tell_is_the_base_s(tmp_path: Path) -> None:
    told = shape("conv", 12, 8, kernel=None)
    modules = base(tmp_path, {"conv.weight": array(8, 3, 2, 2)}, told)
    assert modules.sizes("conv") == BaseSizes(3, 8, (2, 2))


def test_a_linear_module_may_be_stored_as_a_convolution_of_one_place(tmp_path: Path) -> None:
    modules = base(tmp_path, {f"{Q}.weight": array(5, 6, 1, 1)})
    assert modules.sizes(Q) == BaseSizes(6, 5)
    assert whole_weight(modules, Q).shape == (5, 6)


def test_a_bias_is_read_and_a_missing_one_is_zero(tmp_path: Path) -> None:
    bias = array(5)
    modules = base(tmp_path, {f"{Q}.weight": array(5, 6), f"{Q}.bias": bias})
    np.testing.assert_array_equal(modules.bias(Q), bias.astype(np.float64))
    assert not base(tmp_path, {f"{Q}.weight": array(5, 6)}).bias(Q).any()


@pytest.mark.parametrize(
    "stored",
    [
        Q,
        Q.removeprefix("model."),
        f"base.{Q}",
        "language_model.model.layers.0.self_attn.q_proj",
    ],
)
def test_leading_levels_may_differ(stored: str, tmp_path: Path) -> None:
    asked = "model.language_model.layers.0.self_attn.q_proj" if stored.startswith("lang") else Q
    modules = base(tmp_path, {f"{stored}.weight": array(5, 6)}, shape(asked))
    assert modules.sizes(asked) == BaseSizes(6, 5)


@pytest.mark.parametrize(
    ("asked", "stored"),
    [
        ("model.layers.0.q", "model.layers.1.q"),
        ("encoder.layers.0.q", "decoder.layers.0.q"),
        ("model.layers.0.q", "q"),
    ],
)
def test_another_module_is_not_taken_for_the_one(asked: str, stored: str, tmp_path: Path) -> None:
    modules = base(tmp_path, {f"{stored}.weight": array(5, 6)}, shape(asked))
    assert f"the base has no module {asked!r}" in refused(modules, asked).message


def test_two_modules_that_fit_are_refused(tmp_path: Path) -> None:
    modules = base(tmp_path, {"a.q.weight": array(5, 6), "b.q.weight": array(5, 6)}, shape("q"))
    message = refused(modules, "q").message
    assert message == "module 'q' can be 2 modules of the base: 'a.q', 'b.q'"


def test_the_longest_common_suffix_wins(tmp_path: Path) -> None:
    tensors = {"x.a.q.weight": array(5, 6), "x.b.q.weight": array(4, 6)}
    modules = base(tmp_path, tensors, shape("a.q"))
    assert modules.sizes("a.q").out_features == 5


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("weight", np.zeros((5, 6), np.int8), "I8, expected one of F64, F32, F16, BF16"),
        ("weight", array(5), "shape [5], expected [out, in, ...]"),
        ("weight", array(7, 6), "shape [7, 6], which does not fit the adapter: expected [5, 6]"),
        ("weight", np.full((5, 6), np.nan, np.float32), "values that are not finite"),
        ("qweight", np.zeros((5, 6), np.int32), "no weight of this module: it has 'qweight'"),
    ],
)
def test_a_weight_that_cannot_be_used_is_refused_with_the_reason(
    name: str, values: Array, words: str, tmp_path: Path
) -> None:
    error = refused(base(tmp_path, {f"{Q}.{name}": values}))
    assert words in error.message
    quantized = name == "qweight" or values.dtype == np.int8
    assert isinstance(error, UnsupportedAdapterError) is quantized


def test_a_bias_of_another_size_is_refused(tmp_path: Path) -> None:
    modules = base(tmp_path, {f"{Q}.weight": array(5, 6), f"{Q}.bias": array(6)})
    with pytest.raises(AdapterError, match=r"bias is F32 of shape \[6\], expected floats of"):
        modules.bias(Q)


def test_the_order_of_modules_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedAdapterError, match="order of the model's definition"):
        base(tmp_path, {f"{Q}.weight": array(5, 6)}).order()


def test_a_module_that_the_adapter_does_not_have_is_refused(tmp_path: Path) -> None:
    modules = base(tmp_path, {f"{Q}.weight": array(5, 6), "other.weight": array(5, 6)})
    assert "the adapter has no module 'other'" in refused(modules, "other").message


def write_shards(folder: Path, **listed: str) -> Path:
    save_file({f"{Q}.weight": array(5, 6)}, folder / "one.safetensors")
    save_file({"lm_head.weight": array(9, 6)}, folder / "two.safetensors")
    index = folder / "model.safetensors.index.json"
    weight_map = {f"{Q}.weight": "one.safetensors", "lm_head.weight": "two.safetensors", **listed}
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")
    return index


@pytest.mark.parametrize("by_folder", [True, False])
def test_shards_are_found_by_their_index(by_folder: bool, tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    files = open_model_files(tmp_path if by_folder else index)
    assert set(files.names) == {f"{Q}.weight", "lm_head.weight"}
    modules = BaseCheckpoint(files, {Q: shape(), "lm_head": shape("lm_head", 6, 9)})
    np.testing.assert_array_equal(whole_weight(modules, Q), array(5, 6))
    np.testing.assert_array_equal(whole_weight(modules, "lm_head"), array(9, 6))


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/x.safetensors", "a/b.safetensors", "..", ""]
)
def test_a_shard_in_another_folder_is_refused(name: str, tmp_path: Path) -> None:
    index = write_shards(tmp_path, extra=name)
    with pytest.raises(ConfigError, match="expected a name without folders"):
        open_model_files(index)


def test_what_a_folder_may_hold(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="there is no such base model"):
        open_model_files(tmp_path / "absent")
    with pytest.raises(InputMissingError, match="holds no safetensors"):
        open_model_files(tmp_path)
    save_file({f"{Q}.weight": array(5, 6)}, tmp_path / "any.safetensors")
    assert open_model_files(tmp_path).names == (f"{Q}.weight",)
    save_file({f"{Q}.weight": array(5, 6)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"'any\.safetensors', 'other\.safetensors'"):
        open_model_files(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match="it is an adapter, expected the base model"):
        open_model_files(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ConfigError, match="no weight_map"):
        open_model_files(tmp_path)


def test_a_checkpoint_is_told_from_a_graph_by_its_path(tmp_path: Path) -> None:
    assert is_model_checkpoint(tmp_path)
    assert is_model_checkpoint(Path("x.safetensors"))
    assert is_model_checkpoint(Path("model.safetensors.index.json"))
    assert not is_model_checkpoint(Path("model.onnx"))
