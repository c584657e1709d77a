"""Files made to do harm: nothing waits, runs, grows without bound or ends in a traceback.

Random damage is given by tests/fuzz; here are the attacks that have a name.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from onnx import ModelProto

from lora_quant.adapters.formats.torch_zip import TorchZipFile
from lora_quant.config.documents import parse_json, parse_yaml, read_json
from lora_quant.config.lora_config import read_lora_config
from lora_quant.config.regular_file import open_regular
from lora_quant.config.run_config import read_run_config
from lora_quant.encodings.files import parse_encodings
from lora_quant.errors import (
    AdapterError,
    ConfigError,
    GraphError,
    InputMissingError,
    LoraQuantError,
    did_you_mean,
)
from lora_quant.findings import Finding
from lora_quant.graph.files.message_count import has_more_parts
from lora_quant.graph.files.model_file import load_model
from lora_quant.validation.files.adapter_file import read_adapter_file
from lora_quant.validation.validate import validate_paths
from tests.fuzz.message_mutator import delimited, varint
from tests.fuzz.outcome import settle
from tests.fuzz.targets import TARGETS
from tests.timing import cpu_seconds

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in this file system")
NAMES = (
    "lora_config.yaml",
    "pack.json",
    "tone.encodings",
    "model.onnx",
    "a.safetensors",
    "adapter_model.bin",
    "a.gguf",
    "tone.onnx_adapter",
    "lora_config.txt",
    "quant_updatable_tensors.txt",
    "anything",
)


def findings_of(path: Path) -> tuple[Finding, ...]:
    """What validation says; a check that failed by itself is a failure of the test."""
    validation = validate_paths([path])
    assert not any(checked.traceback for checked in validation.checked)
    return validation.findings


@needs_pipes
@pytest.mark.parametrize("name", NAMES)
def test_nobody_waits_at_a_pipe(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    assert findings_of(tmp_path / name)
    assert findings_of(tmp_path)


@needs_pipes
def test_nobody_waits_at_a_pipe_that_takes_the_place_of_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="expected a file, got a pipe"):
        open_regular(tmp_path / "pipe")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no device without an end")
def test_a_device_without_an_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    for read in (load_model, read_adapter_file, TorchZipFile):
        with pytest.raises(InputMissingError):
            read(Path("/dev/zero"))
    with pytest.raises(ConfigError, match="larger than"):
        read_json(Path("/dev/zero"), max_bytes=1 << 20)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_a_terabyte_of_holes_is_refused_at_once(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with path.open("wb") as file:
        try:
            file.truncate(1 << 40)
        except OSError:
            pytest.skip("the file system has no files of such a size")
    found: list[Finding] = []
    # A thousand times less than reading a hundredth of it would take.
    assert cpu_seconds(lambda: found.extend(findings_of(path))) < 2
    assert found


class _Marker:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self._path),)


def test_no_code_of_a_pickle_runs(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    payload = pickle.dumps({"a": _Marker(marker)}, protocol=2)
    pickle.loads(payload)
    marker.rmdir()  # so it works where a pickle is trusted
    bare, archive = tmp_path / "adapter_model.bin", tmp_path / "archive.bin"
    bare.write_bytes(payload)
    with zipfile.ZipFile(archive, "w") as written:
        written.writestr("archive/data.pkl", payload)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
    for path in (bare, archive, tmp_path):
        assert findings_of(path)
    with pytest.raises(LoraQuantError):
        TorchZipFile(archive)
    assert not marker.exists()


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir", "!!python/name:os.mkdir"])
def test_no_code_of_a_yaml_tag_runs(tag: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "lora_config.yaml"
    path.write_text(f"adapter: {tag} [{str(marker)!r}]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="tag"):
        read_lora_config(path)
    assert findings_of(path)
    assert not marker.exists()


def test_an_alias_bomb_is_not_written_out() -> None:
    text = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n"
    for level in range(1, 30):
        text += f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n"
    with pytest.raises(ConfigError, match="aliases repeat more than"):
        parse_yaml(text)


def test_a_directory_that_claims_half_a_terabyte_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.bin"
    claimed = 1 << 39
    with path.open("wb") as file:
        file.write(b"PK\x03\x04")
        try:
            file.truncate(claimed + 64)
        except OSError:
            pytest.skip("the file system has no files of such a size")
        file.seek(claimed + 64)
        file.write(struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, claimed, 64))
        file.write(struct.pack("<4sIQI", b"PK\6\7", 0, claimed + 64, 1))
        sizes = (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
        file.write(struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, *sizes, 0))
    with pytest.raises(AdapterError, match="not a readable zip archive: its directory claims"):
        TorchZipFile(path)


def test_subgraphs_five_thousand_deep_are_refused(tmp_path: Path) -> None:
    graph = b""
    for _ in range(5000):
        attribute = delimited(1, b"then_branch") + varint(20 << 3) + varint(5) + delimited(6, graph)
        graph = delimited(1, delimited(4, b"If") + delimited(5, attribute))
    path = tmp_path / "model.onnx"
    path.write_bytes(varint(1 << 3) + varint(8) + delimited(7, graph))
    with pytest.raises(GraphError, match="not a readable ONNX file"):
        load_model(path)
    assert findings_of(path)


def test_parts_of_a_graph_are_counted_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attributes = varint(5 << 3 | 2) + b"\0"
    node = delimited(1, delimited(4, b"Relu") + attributes * 1000)
    path = tmp_path / "model.onnx"
    path.write_bytes(varint(1 << 3) + varint(8) + delimited(7, node))
    parsed = ModelProto.DESCRIPTOR
    # the version, the graph, the node, its operator, and its attributes
    assert has_more_parts(path.read_bytes(), parsed, 1003)
    assert not has_more_parts(path.read_bytes(), parsed, 1004)
    for cut in range(len(node)):
        assert not has_more_parts(path.read_bytes()[:cut], parsed, 1004)
    monkeypatch.setattr("lora_quant.graph.files.model_file.COUNTED_FROM", 100)
    monkeypatch.setattr("lora_quant.graph.files.model_file.MOST_PARTS", 1003)
    with pytest.raises(GraphError, match="more than 1,003 fields"):
        load_model(path)


@pytest.mark.slow
def test_a_million_nodes_take_time_in_proportion(tmp_path: Path) -> None:
    def write(count: int) -> Path:
        relu = delimited(4, b"Relu")
        nodes = b"".join(
            delimited(1, delimited(1, b"t%d" % i) + delimited(2, b"t%d" % (i + 1)) + relu)
            for i in range(count)
        )
        value = delimited(1, b"t0")
        graph = nodes + delimited(2, b"g") + delimited(11, value)
        graph += delimited(12, delimited(1, b"t%d" % count))
        path = tmp_path / f"model{count}.onnx"
        opset = delimited(8, varint(2 << 3) + varint(17))
        path.write_bytes(varint(1 << 3) + varint(8) + delimited(7, graph) + opset)
        return path

    small, large = write(100_000), write(1_000_000)
    short = cpu_seconds(lambda: load_model(small))
    # ten times as many nodes; a quadratic walk would take a hundred times as long
    assert cpu_seconds(lambda: load_model(large)) < 30 * short + 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in TARGETS if not n.startswith("validate")])
def test_a_file_may_end_at_any_byte(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    seed = min(target.seeds(tmp_path), key=len)
    for length in range(min(len(seed), 6000)):
        settle(lambda end=length: target.run(seed[:end], tmp_path))  # type: ignore[misc]


@pytest.mark.parametrize("text", ["18446744073709551616", "0x" + "f" * 5000, "9" * 4000])
def test_numbers_beyond_64_bits_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="more than 64 bits"):
        parse_yaml(f"a: {text}")
    if not text.startswith("0x"):
        with pytest.raises(ConfigError, match="more than 64 bits"):
            parse_json(f'{{"a": {text}}}')


def test_a_long_text_in_json_takes_no_memory_of_its_own() -> None:
    text = '{"a": "' + "x" * 4_000_000 + '", "a": 1}'
    error: list[ConfigError] = []

    def read() -> None:
        with pytest.raises(ConfigError, match="'a' appears twice") as caught:
            parse_json(text)
        error.append(caught.value)

    # Four million characters; a scan that steps through each of them takes about 2 s.
    assert cpu_seconds(read) < 1
    assert (error[0].where.line, error[0].where.column) == (1, len(text) - len('"a": 1}') + 1)


def test_a_fault_deep_in_json_is_placed() -> None:
    text = '{"a": [1, {"b": 2, "c": [3,\n 1e999]}]}'
    with pytest.raises(ConfigError, match="NaN and infinity") as caught:
        parse_json(text)
    assert caught.value.where.field == "a[1].c[1]"
    assert (caught.value.where.line, caught.value.where.column) == (2, 2)


def test_names_of_megabytes_are_told_in_short(tmp_path: Path) -> None:
    name = "n" * 1_000_000
    path = tmp_path / "mapping.json"
    path.write_text(f'{{"{name}": ["a", 1], "{name}x": 2}}', encoding="utf-8")
    found: list[Finding] = []
    # Comparing two such names letter by letter takes hours.
    assert cpu_seconds(lambda: found.extend(findings_of(path))) < 2
    assert found
    assert all(len(f.message) <= 4000 and len(str(f.where)) <= 10_000 for f in found)
    assert len(did_you_mean(name, [f"{name}x", "b"])) < 1000


def test_long_names_are_compared_with_few_others(tmp_path: Path) -> None:
    known = [f"{index:0200}" for index in range(2000)]
    # 200 letters against 2000 such names take 0.1 s, which 50 problems of a file would repeat.
    assert cpu_seconds(lambda: did_you_mean("01" * 100, known)) < 0.02
    names = [f"model.layers.{index}.self_attn.q_proj" for index in range(1500)]
    assert repr(names[-1]) in did_you_mean("model.layers.1499.self_attn.q_prj", names)


def test_of_very_many_problems_of_encodings_50_are_told() -> None:
    grid = {"bw": 8, "dtype": "INT", "enc_type": "PER_TENSOR", "is_sym": True}
    entry = {**grid, "offset": [-128], "scale": [0.1], **{f"key{n}": 1 for n in range(70)}}
    told = parse_encodings(json.dumps({"a": entry})).findings
    assert len(told) == 51
    assert told[-1].message.startswith("20 more keys of entries are not known")
    stale = {"bitwidth": 8, "dtype": "int", "is_symmetric": "True", "offset": -128, "scale": 0.1}
    wrong = {f"t{n}": [{**stale, "min": -5.0, "max": 12.7}] for n in range(70)}
    document = {"version": "0.6.1", "activation_encodings": wrong, "param_encodings": {}}
    told = parse_encodings(json.dumps(document)).findings
    assert [f.rule for f in told] == ["encodings/stale-range"] * 51
    assert told[-1].message.startswith("20 more values")


def test_repeated_names_are_found_in_linear_time(tmp_path: Path) -> None:
    names = "".join(f"- {{name: a{index}, alpha: 1.0}}\n" for index in range(4000))
    path = tmp_path / "run.yaml"
    path.write_text(f"name: tone\nadapters:\n{names}{names}", encoding="utf-8")
    error: list[str] = []

    def read() -> None:
        with pytest.raises(ConfigError) as caught:
            read_run_config(path)
        error.append(caught.value.message)

    cpu_seconds(read)
    assert error[0].startswith("50 problems")


def test_a_file_that_became_shorter_is_an_error(tmp_path: Path) -> None:
    target = TARGETS["onnx-adapter"]
    path = tmp_path / "a.onnx_adapter"
    path.write_bytes(target.seeds(tmp_path)[0])
    adapter = read_adapter_file(path)
    os.truncate(path, adapter.parameters[0].start + 1)
    with pytest.raises(AdapterError, match="ends in the middle of values"):
        list(adapter.chunks(adapter.parameters[0]))
    with pytest.raises(AdapterError):
        read_adapter_file(path)


@pytest.mark.parametrize("name", ["pack.json", "lora_config.yaml", "a.safetensors", "model.onnx"])
def test_a_folder_in_place_of_a_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    assert findings_of(tmp_path / name)
    assert findings_of(tmp_path)


@pytest.mark.parametrize(
    "name", ["a\nb.json", "a\x1b[31m.json", "\u202egpj.json", "e\u0301.json", " .json", "CON.json"]
)
def test_odd_names_of_files_are_taken_as_they_are(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("[", encoding="utf-8")
    (found,) = findings_of(path)
    assert found.where.file == path


def test_paths_that_no_file_can_have() -> None:
    for text in ("a\0b", "x" * 5000, "/proc/self/mem/x", "\ud800"):
        assert findings_of(Path(text))
