"""Facts of graphs are read once, as long as the file stays the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora_quant.errors import GraphError, InputMissingError
from lora_quant.validation.linked import graph_of
from lora_quant.validation.linked.graph_of import facts_of
from tests.builders import GraphBuilder


def graph(path: Path, name: str = "one") -> Path:
    builder = GraphBuilder()
    x = builder.input("x", ("N", 4))
    builder.output(builder.node("Relu", [x], name), ("N", 4))
    return builder.save(path)


def test_the_same_file_by_another_path_is_not_read_again(tmp_path: Path) -> None:
    path = graph(tmp_path / "model.onnx")
    (tmp_path / "folder").mkdir()
    again = tmp_path / "folder" / ".." / "model.onnx"
    assert facts_of(path) is facts_of(again)


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    path = graph(tmp_path / "model.onnx")
    facts_of(path)
    graph(path, "two")
    os.utime(path, ns=(1, 1))  # the clock of a file system may be too coarse to tell
    assert facts_of(path).nodes == {"two": "Relu"}


def test_an_error_is_kept_and_raised_afresh_each_time(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no graph")
    raised = []
    for _ in range(2):
        with pytest.raises(GraphError) as caught:
            facts_of(path)
        raised.append(caught.value)
    assert raised[0] is not raised[1]
    assert (raised[0].message, raised[0].where) == (raised[1].message, raised[1].where)


def test_a_file_that_is_not_there_is_looked_for_each_time(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(InputMissingError):
        facts_of(path)
    assert facts_of(graph(path)).nodes == {"one": "Relu"}


def test_no_more_than_a_few_are_kept(tmp_path: Path) -> None:
    paths = [graph(tmp_path / f"{number}.onnx") for number in range(10)]
    first = facts_of(paths[0])
    for path in paths:
        facts_of(path)
    assert facts_of(paths[0]) is not first
    assert facts_of(paths[0]) == first
    assert len(graph_of._facts._kept) <= graph_of._MOST
