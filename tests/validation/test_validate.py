"""Paths that a person names: what is found below them, what it is, what is not opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora_quant.cli.render_validation import text_report
from lora_quant.errors import Where
from lora_quant.findings import Severity
from lora_quant.validation import check_item
from lora_quant.validation.documents.document_check import check_document
from lora_quant.validation.found.exclusion import Exclusion
from lora_quant.validation.kinds import Kind
from lora_quant.validation.validate import validate_paths
from tests.validation.packs import SAMPLE, rules

BAD_ADAPTER = '{"name": "a", "rank": "8", "alpha": 1, "target_modules": ["q"]}'


def test_the_sample_is_valid() -> None:
    result = validate_paths([SAMPLE])
    assert result.ok, result.findings
    kinds = {item.kind for item in result.checked}
    assert {
        Kind.LORA_CONFIG,
        Kind.PEFT_CONFIG,
        Kind.ATTACH_POINTS,
        Kind.ENCODINGS_1_0_0,
    } <= kinds


def test_a_pack_in_a_folder_is_one_item(pack: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter.json").write_text(BAD_ADAPTER)
    result = validate_paths([tmp_path])
    assert [(i.path, i.kind, i.problems) for i in result.checked] == [
        (tmp_path / "adapter.json", Kind.ADAPTER_PARAMS, 1),
        (pack, Kind.PACK, 0),
    ]
    assert rules(result.findings) == ["pack/not-filled-in", "schema/adapter-params"]
    assert not result.ok


def test_a_pack_named_by_its_manifest_is_checked_as_a_document(pack: Path) -> None:
    (item,) = validate_paths([pack / "pack.json"]).checked
    assert (item.kind, item.findings) == (Kind.MANIFEST, ())


def test_paths_are_checked_in_the_order_given(tmp_path: Path) -> None:
    for name in ("b.json", "a.json"):
        (tmp_path / name).write_text(BAD_ADAPTER)
    paths = [tmp_path / "b.json", tmp_path / "a.json"]
    assert [i.path for i in validate_paths(paths).checked] == paths


def test_unknown_file_matters_only_if_it_is_named(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"hidden_size": 64}')
    (named,) = validate_paths([file]).findings
    assert (named.rule, named.severity) == ("recognise/unknown", Severity.ERROR)
    met = validate_paths([tmp_path])
    assert [f.severity for f in met.findings] == [Severity.NOTE]
    assert met.ok


def test_binary_file_of_no_known_kind(tmp_path: Path) -> None:
    file = tmp_path / "broken.json"
    file.write_bytes(b"\xff\xfe\x12\0\0")
    (finding,) = validate_paths([file]).findings
    assert (finding.rule, finding.severity) == ("recognise/binary", Severity.ERROR)
    met = validate_paths([tmp_path])
    assert [(f.rule, f.severity) for f in met.findings] == [("recognise/binary", Severity.NOTE)]
    assert met.ok


def test_what_a_file_holds_is_no_finding() -> None:
    result = validate_paths([SAMPLE / "model" / "model.onnx"], fail_on=Severity.NOTE)
    [item] = result.checked
    assert rules(item.contents) == ["graph/content"]
    assert not item.findings
    assert result.ok
    assert "graph/content" in text_report(result, verbose=True)
    assert "graph/content" not in text_report(result, verbose=False)


def test_a_finding_without_a_hint_has_that_of_its_rule(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(BAD_ADAPTER.replace('["q"]', '["q", "q"]'))
    assert all(f.hint for f in validate_paths([tmp_path]).findings)


def test_missing_path(tmp_path: Path) -> None:
    (finding,) = validate_paths([tmp_path / "gone.yaml"]).findings
    assert finding.rule == "document/missing"
    assert finding.where.file == tmp_path / "gone.yaml"


def test_folder_without_anything_to_check(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.json").write_text("{")
    (finding,) = validate_paths([tmp_path]).findings
    assert finding.rule == "recognise/nothing"
    assert finding.where.file == tmp_path


def test_yaml_and_json_are_told_apart_without_a_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("name: both\nadapters: []\n")
    (tmp_path / "b.txt").write_text(BAD_ADAPTER)
    result = validate_paths([tmp_path / "a.txt", tmp_path / "b.txt"])
    assert [i.kind for i in result.checked] == [Kind.RUN_CONFIG, Kind.ADAPTER_PARAMS]


def kinds(*paths: Path) -> dict[str, Kind | None]:
    return {item.path.name: item.kind for item in validate_paths(paths).checked}


def test_content_decides_whatever_a_file_is_called(tmp_path: Path) -> None:
    model = SAMPLE / "model"
    weights = SAMPLE / "adapters" / "tone" / "adapter_model.safetensors"
    (tmp_path / "graph.dat").write_bytes((model / "model.onnx").read_bytes())
    (tmp_path / "weights").write_bytes(weights.read_bytes())
    (tmp_path / "names").write_text("/a/MatMul.lora_A\n/a/MatMul.lora_B\n")
    (tmp_path / "line").write_text("graph;sections/tone.bin\n")
    (tmp_path / "schema").write_text(
        '{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object"}'
    )
    assert kinds(*sorted(tmp_path.iterdir())) == {
        "graph.dat": Kind.GRAPH,
        "weights": Kind.WEIGHTS,
        "names": Kind.TENSOR_LIST,
        "line": Kind.QNN_LORA_CONFIG,
        "schema": Kind.JSON_SCHEMA,
    }


def test_a_folder_is_looked_through_for_what_has_a_known_name(tmp_path: Path) -> None:
    for name in (
        "lora_tensor_names.txt",
        "tone_quant_updatable_tensors.txt",
        "qnn_lora_config.txt",
        "requirements.txt",
        "notes.md",
    ):
        (tmp_path / name).write_text("/a/MatMul\n")
    assert set(kinds(tmp_path)) == {
        "lora_tensor_names.txt",
        "tone_quant_updatable_tensors.txt",
        "qnn_lora_config.txt",
    }


def test_an_adapter_is_one_item_beside_its_configuration() -> None:
    tone = SAMPLE / "adapters" / "tone"
    result = validate_paths([tone])
    assert [(item.path, item.kind) for item in result.checked] == [
        (tone, Kind.ADAPTER),
        (tone / "adapter_config.json", Kind.PEFT_CONFIG),
    ]
    (named,) = validate_paths([tone / "adapter_model.safetensors"]).checked
    assert named.kind is Kind.WEIGHTS


def test_a_schema_that_is_none_is_told_so(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    file.write_text(
        '{"$schema": "https://json-schema.org/draft/2020-12/schema",\n "type": "objekt"}'
    )
    (finding,) = validate_paths([file]).findings
    assert (finding.rule, finding.where.line) == ("schema/json-schema", 2)


def test_a_file_that_several_paths_lead_to_is_checked_once(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    for name in ("a.json", "inner/b.json"):
        (folder / name).write_text(BAD_ADAPTER)
    paths = [folder, folder / "a.json", folder / "inner", tmp_path / "folder" / ".." / "folder"]
    checked = validate_paths([*paths, *paths]).checked
    assert [item.path for item in checked] == [folder / "a.json", folder / "inner" / "b.json"]


def test_a_path_that_is_named_matters_also_if_a_folder_came_first(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"hidden_size": 64}')
    assert not validate_paths([tmp_path, file]).ok


def test_exclusions_hold_in_folders_alone(tmp_path: Path) -> None:
    for name in ("a.json", "drafts/b.json", "old/deep/c.json", "old/deep/d.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(BAD_ADAPTER)
    exclusion = Exclusion(("drafts", "old/**/*.json"), tmp_path)
    checked = validate_paths([tmp_path], exclusion=exclusion).checked
    assert [item.path.name for item in checked] == ["a.json", "d.yaml"]
    named = validate_paths([tmp_path / "drafts" / "b.json"], exclusion=exclusion).checked
    assert [item.path.name for item in named] == ["b.json"]


def test_a_file_that_git_lfs_did_not_fetch(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    assert rules(validate_paths([tmp_path]).findings) == ["recognise/lfs-pointer"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in this file system")
def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")  # opening it would wait for ever
    os.mkfifo(tmp_path / "pack.json")
    named = validate_paths([tmp_path / "a.json", Path(os.devnull)])
    assert [f.rule for f in named.findings] == ["recognise/not-a-file"] * 2
    assert not named.ok
    met = validate_paths([tmp_path])
    assert [f.severity for f in met.findings] == [Severity.NOTE] * 2


def test_links_are_followed_to_files_and_not_to_folders(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "real.json").write_text(BAD_ADAPTER)
    (folder / "link.json").symlink_to(tmp_path / "real.json")
    (folder / "loop.json").symlink_to(folder)
    (folder / "round").symlink_to(folder)
    (folder / "gone.json").symlink_to(tmp_path / "gone.json")
    found = {item.path.name: rules(item.findings) for item in validate_paths([folder]).checked}
    assert found == {
        "link.json": ["schema/adapter-params"],
        "gone.json": ["recognise/broken-link"],
    }
    (finding,) = validate_paths([folder / "gone.json"]).findings
    assert (finding.rule, finding.severity) == ("recognise/broken-link", Severity.ERROR)
    link = tmp_path / "to_folder"
    link.symlink_to(folder)
    assert len(validate_paths([link, folder]).checked) == 2


def test_folders_are_looked_into_to_a_bounded_depth(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(70):
        deep /= "d"
    deep.mkdir(parents=True)
    (deep / "a.json").write_text(BAD_ADAPTER)
    result = validate_paths([tmp_path])
    assert rules(result.findings) == ["recognise/too-deep"]
    assert rules(validate_paths([deep]).findings) == ["schema/adapter-params"]


@pytest.mark.skipif(os.name != "posix", reason="files of POSIX")
def test_any_name_can_be_checked(tmp_path: Path) -> None:
    names = [b"new\nline.json", b"\xff\xfe.json", b"\x1b[31m.json", "\u540d \u00e9.json".encode()]
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text(BAD_ADAPTER)
    result = validate_paths([tmp_path])
    assert sorted(os.fsencode(item.path.name) for item in result.checked) == sorted(names)
    assert [f.rule for f in result.findings] == ["schema/adapter-params"] * len(names)


def test_a_path_that_no_system_has(tmp_path: Path) -> None:
    paths = [tmp_path / "zero\0byte.json", tmp_path / ("long" * 100 + ".json")]
    for path in paths:
        (finding,) = validate_paths([path]).findings
        assert finding.rule.startswith("document/")


@pytest.mark.parametrize("error", [RuntimeError("unforeseen"), MemoryError(), RecursionError()])
def test_a_defect_in_one_check_leaves_the_others(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.json", "b.json", "c.json"):
        (tmp_path / name).write_text(BAD_ADAPTER)

    def fail(path: Path, **more: object) -> object:
        if path.name == "b.json":
            raise error
        return check_document(path, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(check_item, "check_document", fail)
    a, b, c = validate_paths([tmp_path]).checked
    assert [f.rule for f in (*a.findings, *c.findings)] == ["schema/adapter-params"] * 2
    (finding,) = b.findings
    assert finding.rule == "defect/internal"
    assert finding.where == Where(file=tmp_path / "b.json")
    assert type(error).__name__ in finding.message
    assert b.traceback is not None
    assert "check_document" in b.traceback
