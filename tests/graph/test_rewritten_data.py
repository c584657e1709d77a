"""A data file is copied from start to end, with the bytes of some tensors written anew."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto

from lora_quant.errors import InputMissingError, PackError
from lora_quant.graph.files.external_data import DataFile
from lora_quant.graph.files.rewritten_data import NewBytes, overlapping, rewrite

LOCATION = "w.data"


def stored(
    name: str, offset: int, length: int, location: str = LOCATION, *, tell_length: bool = True
) -> TensorProto:
    """A tensor of bytes in a data file."""
    tensor = TensorProto(name=name, data_type=TensorProto.UINT8, dims=[length])
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": location, "offset": str(offset)}
    if tell_length:
        entries["length"] = str(length)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def model_of(*tensors: TensorProto) -> ModelProto:
    model = ModelProto()
    model.graph.initializer.extend(tensors)
    return model


@st.composite
def files(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, bytes | None]]]:
    """A file, and ranges one behind the other with their new bytes, None to keep them."""
    data = draw(st.binary(max_size=200))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8, unique=True)))
    changes: list[tuple[int, bytes | None]] = []
    for start, end in zip(cuts[::2], cuts[1::2], strict=False):
        size = end - start
        new = draw(st.none() | st.binary(min_size=size, max_size=size))
        changes.append((start, new if new is not None else None))
    return data, changes


@given(case=files(), pieces=st.integers(1, 7))
def test_only_the_given_ranges_change(
    tmp_path_factory: pytest.TempPathFactory,
    case: tuple[bytes, list[tuple[int, bytes | None]]],
    pieces: int,
) -> None:
    data, changes = case
    path = tmp_path_factory.getbasetemp() / LOCATION
    path.write_bytes(data)
    wanted = bytearray(data)
    tensors: list[tuple[TensorProto, NewBytes]] = []
    for start, new in changes:
        if new is not None:
            wanted[start : start + len(new)] = new
        tensor = stored(f"t{start}", start, len(new or b""), tell_length=bool(start % 2))
        tensors.append((tensor, partial(cut, new, pieces)))
    # Another file's tensors do not matter.
    tensors.append((stored("other", 0, 1, "other.data"), lambda: [b"x"]))
    tensors.reverse()
    sink = io.BytesIO()
    rewrite(DataFile(LOCATION, path, len(data)), tensors, sink)
    assert sink.getvalue() == bytes(wanted)


def cut(data: bytes | None, size: int) -> list[bytes] | None:
    if data is None:
        return None
    return [data[start : start + size] for start in range(0, len(data), size)]


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 10), st.sampled_from(["a.data", "b.data"])),
        max_size=8,
    )
)
def test_overlaps_are_those_that_comparing_all_pairs_finds(
    ranges: list[tuple[int, int, str]],
) -> None:
    tensors = [stored(f"t{n}", *one) for n, one in enumerate(ranges)]
    found = overlapping(model_of(*tensors))

    def meet(one: int, other: int) -> bool:
        first, second = ranges[one], ranges[other]
        return first[2] == second[2] and max(first[0], second[0]) < min(
            first[0] + first[1], second[0] + second[1]
        )

    count = range(len(ranges))
    wanted = {f"t{i}" for i in count if any(meet(i, j) for j in count if j != i)}
    assert set(found) == wanted
    assert all(meet(int(one[1:]), int(other[1:])) for one, other in found.items())


def test_a_tensor_without_a_length_has_that_of_its_shape() -> None:
    model = model_of(stored("a", 0, 8, tell_length=False), stored("b", 7, 1))
    assert overlapping(model) == {"a": "b", "b": "a"}


class Meddler:
    """Writes to the source while it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, data: bytes) -> int:
        self._path.write_bytes(bytes(120))
        return len(data)


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / LOCATION
    path.write_bytes(bytes(100))
    with pytest.raises(PackError, match="changed while they were read"):
        rewrite(DataFile(LOCATION, path, 100), [], Meddler(path))


def test_a_file_that_ends_early_or_is_gone_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / LOCATION
    path.write_bytes(bytes(120))
    with pytest.raises(InputMissingError, match="it ended 80 bytes too early"):
        rewrite(DataFile(LOCATION, path, 200), [], io.BytesIO())
    path.unlink()
    with pytest.raises(InputMissingError, match="cannot be read: No such file"):
        rewrite(DataFile(LOCATION, path, 200), [], io.BytesIO())


def test_what_the_writer_raises_passes_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / LOCATION
    path.write_bytes(bytes(100))

    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        rewrite(DataFile(LOCATION, path, 100), [], Full())
    assert not isinstance(caught.value, InputMissingError)
