"""Filling in what the device compiler knows: sections are found by their names."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.api import build
from lora_quant.cli.fill_in_command import fill_in_command
from lora_quant.config.lora_config import read_lora_config
from lora_quant.config.options import BuildOptions
from lora_quant.errors import ConfigError, InputMissingError, PackError
from lora_quant.targets.qairt.fill_in import fill_in
from lora_quant.targets.qairt.sections import find_sections
from lora_quant.validation.validate import validate_paths
from tests.sample import SAMPLE

USE_CASES = ["base", "tone", "both"]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = read_lora_config(SAMPLE / "lora_config.yaml")
    kept = [u for u in config.use_cases if u.name in USE_CASES]
    output = tmp_path_factory.mktemp("fill_in") / "pack"
    build(config.model_copy(update={"use_cases": kept}), output)
    return output


def made(folder: Path, *graphs: str, use_cases: list[str] = USE_CASES) -> Path:
    folder.mkdir(exist_ok=True)
    for graph in graphs:
        for use_case in use_cases:
            (folder / f"{graph}_{use_case}.bin").write_bytes(b"section")
    return folder


def adapters(folder: Path) -> dict[str, Any]:
    document = json.loads((folder / "genie_lora.json").read_text(encoding="utf-8"))
    lora = document["dialog"]["engine"]["model"]["binary"]["lora"]
    return {adapter["name"]: adapter for adapter in lora["adapters"]}


def test_one_graph(pack: Path, tmp_path: Path) -> None:
    folder = made(tmp_path / "sections", "llama")
    result = fill_in(pack, folder)
    assert result.graphs == ("llama",)
    assert {path.name for path in result.written} == {
        "genie_lora.json",
        *(f"llama_{name}_lora_config.txt" for name in USE_CASES),
    }
    assert adapters(folder)["tone"]["bin-sections"] == ["llama_tone.bin"]
    text = (folder / "llama_tone_lora_config.txt").read_text(encoding="utf-8")
    assert text == "llama;llama_tone.bin\n"
    validation = validate_paths([folder])
    assert len(validation.checked) == 4
    assert validation.findings == ()


def test_parts_come_in_the_order_of_their_numbers(pack: Path, tmp_path: Path) -> None:
    folder = made(tmp_path / "sections", "part_10_of_12", "part_2_of_12")
    result = fill_in(pack, folder)
    assert result.graphs == ("part_2_of_12", "part_10_of_12")
    assert adapters(folder)["both"]["bin-sections"] == [
        "part_2_of_12_both.bin",
        "part_10_of_12_both.bin",
    ]
    assert validate_paths([folder]).findings == ()


def test_strengths_stay_as_they_were(pack: Path, tmp_path: Path) -> None:
    folder = made(tmp_path / "sections", "llama")
    fill_in(pack, folder)
    own = adapters(pack / "qairt")
    for name, adapter in adapters(folder).items():
        assert adapter | {"bin-sections": []} == own[name] | {"bin-sections": []}


def test_the_pack_is_not_touched(pack: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in pack.rglob("*") if p.is_file()}
    fill_in(pack, made(tmp_path / "sections", "llama"))
    assert {p: p.read_bytes() for p in pack.rglob("*") if p.is_file()} == before


def test_paths_of_the_device(pack: Path, tmp_path: Path) -> None:
    folder = made(tmp_path / "sections", "llama")
    fill_in(pack, folder, device_folder="/data/local/tmp")
    assert adapters(folder)["tone"]["bin-sections"] == ["/data/local/tmp/llama_tone.bin"]
    text = (folder / "llama_both_lora_config.txt").read_text(encoding="utf-8")
    assert text == "llama;/data/local/tmp/llama_both.bin\n"


def test_files_that_exist_are_replaced_only_by_force(pack: Path, tmp_path: Path) -> None:
    folder = made(tmp_path / "sections", "llama")
    fill_in(pack, folder)
    (folder / "genie_lora.json").write_text("mine", encoding="utf-8")
    with pytest.raises(PackError, match="the output file exists"):
        fill_in(pack, folder)
    assert (folder / "genie_lora.json").read_text(encoding="utf-8") == "mine"
    fill_in(pack, folder, force=True)
    assert validate_paths([folder]).findings == ()


def test_nothing_is_written_if_a_section_is_missing(pack: Path, tmp_path: Path) -> None:
    folder = made(tmp_path / "sections", "llama", use_cases=["base", "tone"])
    with pytest.raises(InputMissingError) as caught:
        fill_in(pack, folder)
    assert "no section of use case 'both': expected a file '<graph>_both.bin'" in str(caught.value)
    assert "'llama_base.bin'" in str(caught.value)
    assert {path.suffix for path in folder.iterdir()} == {".bin"}


def test_a_section_of_an_earlier_run(pack: Path, tmp_path: Path) -> None:
    folder = made(tmp_path / "sections", "llama")
    made(folder, "old", use_cases=["tone"])
    with pytest.raises(ConfigError) as caught:
        fill_in(pack, folder)
    assert "'tone' has sections of 'llama', 'old', use case 'base' of 'llama'" in str(caught.value)


def test_a_folder_that_is_not_there(pack: Path, tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="folder of sections cannot be read"):
        fill_in(pack, tmp_path / "none")


def test_a_semicolon_cannot_be_in_a_name(pack: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has a semicolon"):
        fill_in(pack, made(tmp_path / "sections", "a;b"))


@pytest.mark.parametrize("graph", ["two\nlines", "no\udcfftext"])
def test_a_name_that_is_no_line_of_text(graph: str, pack: Path, tmp_path: Path) -> None:
    folder = made(tmp_path / "sections", graph)
    with pytest.raises(ConfigError, match="has a character that cannot be in the file"):
        fill_in(pack, folder)
    assert {path.suffix for path in folder.iterdir()} == {".bin"}


@pytest.mark.parametrize("folder", ["/data;x", "/data\nx"])
def test_a_device_folder_that_is_no_line_of_text(folder: str, pack: Path, tmp_path: Path) -> None:
    sections = made(tmp_path / "sections", "llama")
    with pytest.raises(ConfigError, match="the name '/data"):
        fill_in(pack, sections, device_folder=folder)
    assert {path.suffix for path in sections.iterdir()} == {".bin"}


def test_nothing_is_written_if_one_file_cannot_be(pack: Path, tmp_path: Path) -> None:
    folder = made(tmp_path / "sections", "llama")
    (folder / "llama_tone_lora_config.txt").mkdir()
    before = sorted(folder.iterdir())
    with pytest.raises(PackError, match="the output file is a folder"):
        fill_in(pack, folder, force=True)
    assert sorted(folder.iterdir()) == before


def test_a_link_is_replaced_and_what_it_points_at_is_not(pack: Path, tmp_path: Path) -> None:
    folder = made(tmp_path / "sections", "llama")
    outside = tmp_path / "outside"
    (folder / "genie_lora.json").symlink_to(outside)
    with pytest.raises(PackError, match="the output file exists"):
        fill_in(pack, folder)
    fill_in(pack, folder, force=True)
    assert not outside.exists()
    assert not (folder / "genie_lora.json").is_symlink()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in this file system")
def test_nobody_waits_for_the_reader_of_a_fifo(pack: Path, tmp_path: Path) -> None:
    folder = made(tmp_path / "sections", "llama")
    os.mkfifo(folder / "genie_lora.json")
    with pytest.raises(PackError, match="the output file is a pipe"):
        fill_in(pack, folder, force=True)
    assert (folder / "genie_lora.json").is_fifo()


def test_a_configuration_without_a_block_has_nothing_to_fill_in(pack: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pack, tmp_path / "copy"))
    (copy / "qairt" / "genie_lora.json").write_text('{"dialog": {}}', encoding="utf-8")
    with pytest.raises(ConfigError, match="nothing to fill in"):
        fill_in(copy, made(tmp_path / "sections", "llama"))


def test_a_pack_of_another_target_has_nothing_to_fill_in(tmp_path: Path) -> None:
    config = read_lora_config(SAMPLE / "lora_config.yaml")
    build(config, tmp_path / "out", BuildOptions(targets=("onnxruntime",)))
    with pytest.raises(ConfigError, match="nothing to fill in") as caught:
        fill_in(tmp_path / "out", tmp_path)
    assert "target qairt" in (caught.value.hint or "")


def test_a_damaged_block_is_refused(pack: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pack, tmp_path / "copy"))
    (copy / "qairt" / "genie_lora.json").write_text('{"dialog": 3}', encoding="utf-8")
    with pytest.raises(ConfigError):
        fill_in(copy, made(tmp_path / "sections", "llama"))


def test_the_longest_name_of_a_use_case_decides(tmp_path: Path) -> None:
    folder = made(tmp_path / "sections", "g", use_cases=["tone", "my_tone"])
    found = find_sections(folder, ["tone", "my_tone"])
    assert found.graphs == ("g",)
    assert found.files == {"tone": {"g": "g_tone.bin"}, "my_tone": {"g": "g_my_tone.bin"}}


WORDS = st.text(st.sampled_from("abz019"), min_size=1, max_size=4)


@given(graphs=st.sets(WORDS, min_size=1, max_size=4), use_cases=st.sets(WORDS, min_size=1))
def test_every_section_goes_to_its_use_case(
    graphs: set[str], use_cases: set[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Without underscores in the names there is one way to read a file's name."""
    folder = made(tmp_path_factory.mktemp("sections"), *graphs, use_cases=sorted(use_cases))
    found = find_sections(folder, sorted(use_cases))
    assert set(found.graphs) == graphs
    assert found.files == {u: {g: f"{g}_{u}.bin" for g in graphs} for u in use_cases}


def test_command(pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path / "sections", "part_1", "part_2")
    monkeypatch.chdir(tmp_path)
    arguments = [str(pack), "sections"]
    result = CliRunner().invoke(fill_in_command, arguments, standalone_mode=False)
    assert result.return_value == 0
    lines = result.output.splitlines()
    assert lines[0] == "wrote sections/genie_lora.json"
    assert len(lines) == 1 + 6 + 1
    assert lines[-1] == "bin-sections are in the order part_1, part_2: ctx-bins need the same"


def test_command_with_a_report(pack: Path, tmp_path: Path) -> None:
    folder = made(tmp_path / "sections", "llama")
    arguments = ["--json", str(pack), str(folder)]
    result = CliRunner().invoke(fill_in_command, arguments, standalone_mode=False)
    report = json.loads(result.output)
    assert (report["command"], report["ok"]) == ("fill-in", True)
    assert (folder / "genie_lora.json").as_posix() in report["outputs"]
    assert report["details"] == {"graphs": ["llama"]}
