"""External data: inside the folder, of the right size, and never followed elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from onnx import ModelProto, TensorProto

from lora_quant.errors import GraphError, InputMissingError
from lora_quant.graph.files.model_file import load_model
from tests.builders import attention, save


def external_model(folder: Path) -> ModelProto:
    path = save(attention(layers=1).model(), folder / "model.onnx", external=True)
    model: ModelProto = ModelProto.FromString(path.read_bytes())
    assert len(model.graph.initializer) == 4
    return model


def change(key: str, value: str | None) -> Callable[[ModelProto], None]:
    def apply(model: ModelProto) -> None:
        tensor = model.graph.initializer[1]
        entries = {entry.key: entry.value for entry in tensor.external_data}
        del tensor.external_data[:]
        for name, old in entries.items():
            new = value if name == key else old
            if new is not None:
                tensor.external_data.add(key=name, value=new)

    return apply


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("location", "", "'' is not inside the model's own folder"),
        ("location", None, "'' is not inside the model's own folder"),
        ("location", "/etc/hostname", "'/etc/hostname' is not inside"),
        ("location", "../model.data", "'../model.data' is not inside"),
        ("location", "sub/../../model.data", "is not inside the model's own folder"),
        ("location", "..\\model.data", "is not inside the model's own folder"),
        ("location", "C:\\model.data", "is not inside the model's own folder"),
        ("location", "C:model.data", "is not inside the model's own folder"),
        ("location", "\\\\host\\share\\model.data", "is not inside the model's own folder"),
        ("location", ".", "'.' is not a file"),
        ("offset", "-1", "the offset of external data is '-1', expected a whole number of bytes"),
        ("offset", "1.5", "the offset of external data is '1.5'"),
        ("offset", "1_0", "the offset of external data is '1_0'"),
        ("offset", "9" * 5000, "the offset of external data is '9{40}', expected"),
        ("offset", "100000", r"wants bytes 100000 to 100128 of 'model\.data', which has \d+ bytes"),
        ("length", "many", "the length of external data is 'many'"),
        ("length", "4", "has a length of 4 bytes, but its shape and type need 128"),
        ("length", "1000", "has a length of 1000 bytes, but its shape and type need 128"),
    ],
)
def test_entries_that_are_refused(
    tmp_path: Path, key: str, value: str | None, message: str
) -> None:
    model = external_model(tmp_path)
    change(key, value)(model)
    with pytest.raises(GraphError, match=message) as caught:
        load_model(save(model, tmp_path / "changed.onnx"))
    assert caught.value.where.tensor == model.graph.initializer[1].name


@pytest.mark.parametrize("location", ["absent.data", "nul\0byte", "x" * 300, "model.data/inside"])
def test_data_that_is_not_there(tmp_path: Path, location: str) -> None:
    model = external_model(tmp_path)
    change("location", location)(model)
    with pytest.raises(InputMissingError, match=r"external data file .* does not exist") as caught:
        load_model(save(model, tmp_path / "changed.onnx"))
    assert "copy the data file into the graph's folder" in str(caught.value)


def test_a_missing_length_means_the_size_of_the_tensor(tmp_path: Path) -> None:
    model = external_model(tmp_path)
    change("length", None)(model)
    assert len(load_model(save(model, tmp_path / "changed.onnx")).data_files) == 1


def test_shapes_beyond_the_data(tmp_path: Path) -> None:
    model = external_model(tmp_path)
    model.graph.initializer[1].dims[0] = 2**60
    change("length", None)(model)
    with pytest.raises(GraphError, match=r"which has \d+ bytes\n.*\n.*truncated or belongs"):
        load_model(save(model, tmp_path / "changed.onnx"))


def test_truncated_data(tmp_path: Path) -> None:
    external_model(tmp_path)
    data = tmp_path / "model.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(GraphError, match="truncated or belongs to another graph"):
        load_model(tmp_path / "model.onnx")


def test_links_are_refused(tmp_path: Path) -> None:
    external_model(tmp_path)
    data = tmp_path / "model.data"
    data.rename(tmp_path / "real.data")
    data.symlink_to(tmp_path / "real.data")
    with pytest.raises(GraphError, match=r"'model\.data' is a symbolic link"):
        load_model(tmp_path / "model.onnx")


def test_a_folder_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    model = external_model(folder)
    (tmp_path / "other").mkdir()
    (folder / "model.data").rename(tmp_path / "other" / "model.data")
    (folder / "sub").symlink_to(tmp_path / "other")
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = "sub/model.data"
    with pytest.raises(GraphError, match="is a symbolic link"):
        load_model(save(model, folder / "changed.onnx"))


def test_one_file_in_two_spellings_is_one_file(tmp_path: Path) -> None:
    model = external_model(tmp_path)
    change("location", "./model.data")(model)
    (data,) = load_model(save(model, tmp_path / "changed.onnx")).data_files
    assert data.location == "model.data"


@pytest.mark.parametrize(
    ("element", "size"),
    [
        (TensorProto.INT4, 16),
        (TensorProto.BFLOAT16, 64),
        (TensorProto.FLOAT8E4M3FN, 32),
        (TensorProto.DOUBLE, 256),
        (TensorProto.BOOL, 32),
        (TensorProto.COMPLEX64, 256),
    ],
)
def test_sizes_by_element_type(tmp_path: Path, element: int, size: int) -> None:
    model = external_model(tmp_path)
    model.graph.initializer[1].data_type = element
    change("length", str(size))(model)
    load_model(save(model, tmp_path / "right.onnx"))
    change("length", str(size - 1))(model)
    with pytest.raises(GraphError, match=f"need {size}"):
        load_model(save(model, tmp_path / "wrong.onnx"))


def test_every_tensor_of_a_model_is_checked(tmp_path: Path) -> None:
    model = external_model(tmp_path)
    tensor = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    for place in ("attribute", "function", "sparse"):
        changed = ModelProto()
        changed.CopyFrom(model)
        if place == "sparse":
            sparse = changed.graph.sparse_initializer.add(dims=[2])
            sparse.values.CopyFrom(tensor)
            sparse.indices.data_type = TensorProto.INT64
        else:
            nodes = changed.graph.node
            if place == "function":
                nodes = changed.functions.add(name="f", domain="d").node
            node = nodes.add(op_type="Constant", output=["c"])
            attribute = node.attribute.add(name="value", type=4)
            attribute.t.CopyFrom(tensor)
        with pytest.raises(GraphError, match=r"'\.\./secret' is not inside"):
            load_model(save(changed, tmp_path / "changed.onnx"))
