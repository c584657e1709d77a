"""A pack with one thing wrong: which rule says so, and where."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from lora_quant.findings import Finding
from lora_quant.validation.documents.schema_check import Depth
from lora_quant.validation.pack.check import check_pack
from tests.validation.packs import (
    edit_json,
    edit_manifest,
    edit_text,
    flip_byte,
    manifest_files,
    one,
    rehash,
    rules,
)

FILES = [
    "lora_zeros.data",
    "model.data",
    "model.onnx",
    "lora_tensor_names.txt",
    "base_encodings.json",
    "lora_importer_config.yaml",
    "genie_lora.json",
    "tone/lora_weights.safetensors",
    "tone/quant_overrides.json",
    "tone/quant_updatable_tensors.txt",
    "tone/qnn_lora_config.txt",
]


def check_quickly(pack: Path) -> tuple[Finding, ...]:
    """All checks but hashes; the middle of long lists of encodings is left out."""
    return check_pack(pack, depth=Depth.QUICK)


def test_intact_pack_has_no_findings(built: Path) -> None:
    assert check_pack(built) == ()


def test_cases_cover_every_role(built: Path) -> None:
    roles = {f["role"] for f in manifest_files(built)}
    assert roles == {
        f["role"] for f in manifest_files(built) if f["path"][len("qairt/") :] in FILES
    }


def test_pack_may_be_moved(pack: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "other" / "place"
    elsewhere.parent.mkdir()
    shutil.move(pack, elsewhere)
    assert check_pack(elsewhere) == ()


@pytest.mark.parametrize("name", FILES)
def test_flipped_byte(pack: Path, name: str) -> None:
    file = pack / "qairt" / name
    flip_byte(file, file.stat().st_size // 2)
    finding = one(check_pack(pack), "pack/hash")
    assert finding.where.file == file
    assert "changed after the build" in finding.message
    assert "the manifest says" in finding.message


@pytest.mark.parametrize("name", FILES)
def test_missing_file(pack: Path, name: str) -> None:
    (pack / "qairt" / name).unlink()
    finding = one(check_quickly(pack), "pack/missing-file")
    assert finding.where.file == pack / "qairt" / name


@pytest.mark.parametrize("name", FILES)
def test_longer_file(pack: Path, name: str) -> None:
    file = pack / "qairt" / name
    size = file.stat().st_size
    with file.open("ab") as stream:
        stream.write(b"\n")
    finding = one(check_quickly(pack), "pack/size")
    assert finding.where.file == file
    assert f"{size + 1} bytes, the manifest says {size}" in finding.message


def test_quick_check_compares_sizes_and_no_hashes(pack: Path) -> None:
    file = pack / "qairt" / "model.data"
    flip_byte(file, 100)
    assert check_pack(pack, depth=Depth.QUICK) == ()
    file.write_bytes(file.read_bytes() + b"x")
    assert rules(check_pack(pack, depth=Depth.QUICK)) == ["pack/size"]


@pytest.mark.parametrize("name", ["note.txt", "qairt/tone/old.json", ".hidden"])
def test_stray_file(pack: Path, name: str) -> None:
    (pack / name).write_text("{}", encoding="utf-8")
    finding = one(check_quickly(pack), "pack/stray-file")
    assert finding.where.file == pack / name


def test_stray_link_to_a_folder(pack: Path, tmp_path: Path) -> None:
    (pack / "more").symlink_to(tmp_path)
    assert one(check_quickly(pack), "pack/stray-file").where.file == pack / "more"


def test_file_that_is_a_link_out_of_the_pack(pack: Path, tmp_path: Path) -> None:
    file = pack / "qairt" / "tone" / "quant_overrides.json"
    file.rename(tmp_path / "elsewhere.json")
    file.symlink_to(tmp_path / "elsewhere.json")
    finding = one(check_quickly(pack), "pack/outside")
    assert finding.where.file == file
    assert "a link that leads out of the pack" in finding.message


@pytest.mark.parametrize("path", ["../secret.json", "qairt/../../secret.json", ".."])
def test_manifest_that_lists_a_file_outside(pack: Path, path: str) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["targets"][0]["files"].append(
            {"role": "graph", "path": path, "size": 0, "sha256": "0" * 64}
        )

    edit_manifest(pack, edit)
    finding = one(check_quickly(pack), "pack/outside")
    assert "--beside-base" in finding.message


def test_beside_base_allows_only_graphs_outside(pack: Path) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["base"]["beside_base"] = True
        manifest["targets"][0]["files"].append(
            {"role": "quant-overrides", "path": "../x.json", "size": 0, "sha256": "0" * 64}
        )

    edit_manifest(pack, edit)
    assert "pack/outside" in rules(check_quickly(pack))


def test_file_that_is_listed_twice(pack: Path) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        files = manifest["targets"][0]["files"]
        files.append({**files[0], "path": f"qairt/./{files[0]['path'][6:]}"})

    edit_manifest(pack, edit)
    assert "twice, as 'graph-data' and as" in one(check_quickly(pack), "pack/listed-twice").message


def test_truncated_weights(pack: Path) -> None:
    file = pack / "qairt" / "tone" / "lora_weights.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    rehash(pack)
    finding = one(check_quickly(pack), "pack/weights-format")
    assert finding.where.file == file
    assert finding.where.use_case == "tone"


def test_swapped_weights_of_two_use_cases(pack: Path) -> None:
    tone, both = (pack / "qairt" / n / "lora_weights.safetensors" for n in ("tone", "both"))
    content = tone.read_bytes()
    tone.write_bytes(both.read_bytes())
    both.write_bytes(content)
    findings = check_pack(pack)
    assert rules(findings) == ["pack/hash"]
    assert {f.where.use_case for f in findings} == {"tone", "both"}


def test_weights_of_another_dtype_and_shape(pack: Path) -> None:
    file = pack / "qairt" / "tone" / "lora_weights.safetensors"
    tensors = load_file(file)
    first, second = list(tensors)[:2]
    tensors[first] = tensors[first].astype(np.float16)
    tensors[second] = tensors[second].T.copy()
    save_file(tensors, file)
    rehash(pack)
    findings = check_quickly(pack)
    assert rules(findings) == ["pack/weights-dtype", "pack/weights-shape"]
    dtype = one(findings, "pack/weights-dtype")
    assert (dtype.where.tensor, dtype.where.use_case) == (first, "tone")
    assert "F16, expected F32" in dtype.message
    shape = one(findings, "pack/weights-shape")
    assert shape.where.tensor == second
    assert str(list(tensors[second].shape)) in shape.message


def test_weights_with_one_tensor_too_few_and_one_too_many(pack: Path) -> None:
    file = pack / "qairt" / "tone" / "lora_weights.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    tensors["surprise"] = tensors.pop(name)
    save_file(tensors, file)
    rehash(pack)
    messages = [f.message for f in check_quickly(pack)]
    assert len(messages) == 2
    assert f"lacks 1 tensors of the manifest: {name!r}" in messages[0]
    assert "should not: 'surprise'" in messages[1]


def test_tensor_renamed_in_the_manifest(pack: Path) -> None:
    edit_manifest(pack, lambda m: m["tensors"][0].update(name="renamed"))
    findings = check_quickly(pack)
    assert rules(findings) == [
        "pack/graph-tensors",
        "pack/tensor-names",
        "pack/tensor-roles",
        "pack/weights-tensors",
    ]
    assert one(findings, "pack/graph-tensors").where.tensor == "renamed"
    assert {f.where.use_case for f in findings if f.rule == "pack/weights-tensors"} == {
        "base",
        "tone",
        "both",
    }


def test_tensor_reshaped_in_the_manifest(pack: Path) -> None:
    edit_manifest(pack, lambda m: m["tensors"][0].update(shape=[1, 2]))
    findings = check_quickly(pack)
    assert rules(findings) == ["pack/graph-tensors", "pack/weights-shape"]
    assert "expected [1, 2]" in one(findings, "pack/graph-tensors").message


def test_tensor_names_that_lack_add_and_repeat(pack: Path) -> None:
    file = pack / "qairt" / "lora_tensor_names.txt"
    names = file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join(["other", names[1], *names[1:]]), encoding="utf-8")
    rehash(pack)
    findings = check_quickly(pack)
    assert rules(findings) == ["pack/tensor-names"]
    assert [f.where.file for f in findings] == [file] * 3
    missing, extra, repeated = (f.message for f in findings)
    assert repr(names[0]) in missing
    assert "'other'" in extra
    assert repr(names[1]) in repeated


def test_text_list_that_is_not_utf8(pack: Path) -> None:
    for name in ("lora_tensor_names.txt", "tone/quant_updatable_tensors.txt"):
        (pack / "qairt" / name).write_bytes(b"\xff\xfe\n")
    rehash(pack)
    findings = check_quickly(pack)
    assert rules(findings) == ["pack/unreadable"]
    assert len(findings) == 2


def test_updatable_tensor_without_encoding(pack: Path) -> None:
    file = pack / "qairt" / "both" / "quant_updatable_tensors.txt"
    file.write_text(file.read_text(encoding="utf-8") + "nobody\n", encoding="utf-8")
    rehash(pack)
    finding = one(check_quickly(pack), "pack/updatable-without-encoding")
    assert finding.where.file == file
    assert finding.where.use_case == "both"
    assert "'nobody'" in finding.message


def test_overrides_that_lack_a_tensor(pack: Path) -> None:
    file = pack / "qairt" / "tone" / "quant_overrides.json"
    names = (file.parent / "quant_updatable_tensors.txt").read_text(encoding="utf-8").splitlines()

    def edit(document: dict[str, Any]) -> None:
        for section in ("activation_encodings", "param_encodings"):
            document[section] = [e for e in document[section] if e["name"] != names[0]]

    edit_json(file, edit)
    assert repr(names[0]) in one(check_quickly(pack), "pack/updatable-without-encoding").message


def test_overrides_that_their_schema_refuses(pack: Path) -> None:
    file = pack / "qairt" / "tone" / "quant_overrides.json"
    edit_json(file, lambda d: d["param_encodings"][0].update(bw="8"))
    tensor = json.loads(file.read_text(encoding="utf-8"))["param_encodings"][0]["name"]
    finding = one(check_quickly(pack), "schema/aimet-encodings-1.0.0")
    assert finding.where.file == file
    assert finding.where.field == "param_encodings[0].bw"
    assert finding.where.tensor == tensor
    assert finding.where.line is not None
    assert finding.message == "expected a whole number, got the text '8'"


def test_overrides_with_a_tensor_twice(pack: Path) -> None:
    file = pack / "qairt" / "tone" / "quant_overrides.json"
    edit_json(file, lambda d: d["param_encodings"].append(d["param_encodings"][0]))
    finding = one(check_quickly(pack), "encodings/invalid")
    assert finding.where.file == file
    assert "second entry" in finding.message


def test_base_encodings_that_are_no_json(pack: Path) -> None:
    file = pack / "qairt" / "base_encodings.json"
    file.write_text('{"version": "1.0.0",', encoding="utf-8")
    rehash(pack)
    finding = one(check_quickly(pack), "document/invalid")
    assert finding.where.file == file


@pytest.mark.parametrize(
    ("old", "new", "rule", "field", "text"),
    [
        (
            "name: tone",
            "name: tune",
            "pack/config-use-cases",
            "use_case[1].name",
            "'tune' is not one of the pack",
        ),
        (
            "tone/lora_weights.safetensors",
            "both/lora_weights.safetensors",
            "pack/config-path",
            "use_case[1].lora_weights",
            "the use case 'tone' gets the weights of 'both'",
        ),
        (
            "tone/lora_weights.safetensors",
            "tone/quant_overrides.json",
            "pack/config-path",
            "use_case[1].lora_weights",
            "expected a file of the role 'weights'",
        ),
        (
            "tone/lora_weights.safetensors",
            "tone/gone.safetensors",
            "pack/config-path",
            "use_case[1].lora_weights",
            "is not a file of the pack",
        ),
        (
            "tone/quant_overrides.json",
            "/etc/overrides.json",
            "pack/config-path",
            "use_case[1].quant_overrides",
            "is absolute",
        ),
        (
            "tone/quant_overrides.json",
            "null",
            "pack/config-path",
            "use_case[1].quant_overrides",
            "got null",
        ),
        (
            "model.onnx",
            "../../model.onnx",
            "pack/config-path",
            "use_case[0].model_name",
            "is not a file of the pack",
        ),
        (
            "lora_weights: tone",
            "lora_wieghts: tone",
            "schema/importer-config",
            "use_case[1].lora_wieghts",
            "unknown key 'lora_wieghts'",
        ),
    ],
)
def test_edited_importer_config(
    pack: Path, old: str, new: str, rule: str, field: str, text: str
) -> None:
    file = pack / "qairt" / "lora_importer_config.yaml"
    edit_text(file, old, new)
    found = [f for f in check_quickly(pack) if f.rule == rule and f.where.field == field]
    assert len(found) == 1
    assert text in found[0].message
    assert found[0].where.file == file
    lines = file.read_text(encoding="utf-8").splitlines()
    assert found[0].where.line is not None
    assert new in lines[found[0].where.line - 1]


def test_importer_config_without_a_use_case(pack: Path) -> None:
    file = pack / "qairt" / "lora_importer_config.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text[: text.index("  - name: both")], encoding="utf-8")
    rehash(pack)
    finding = one(check_quickly(pack), "pack/config-use-cases")
    assert "lacks use cases of the pack: 'both'" in finding.message


def test_use_case_renamed_in_the_manifest(pack: Path) -> None:
    edit_manifest(pack, lambda m: m["use_cases"][1].update(name="tune"))
    findings = check_quickly(pack)
    assert rules(findings) == [
        "pack/config-use-cases",
        "pack/genie-use-cases",
        "pack/unknown-use-case",
        "pack/use-case-files",
    ]
    assert any(f.hint == "did you mean 'tune'?" for f in findings)


def test_manifest_without_the_overrides_of_a_use_case(pack: Path) -> None:
    path = "qairt/tone/quant_overrides.json"

    def edit(manifest: dict[str, Any]) -> None:
        target = manifest["targets"][0]
        target["files"] = [f for f in target["files"] if f["path"] != path]

    edit_manifest(pack, edit)
    findings = check_quickly(pack)
    assert one(findings, "pack/stray-file").where.file == pack / path
    missing = one(findings, "pack/use-case-files")
    assert missing.where.use_case == "tone"
    assert "0 files of the role 'quant-overrides'" in missing.message


def test_truncated_graph(pack: Path) -> None:
    file = pack / "qairt" / "model.onnx"
    file.write_bytes(file.read_bytes()[:-1000])
    rehash(pack)
    finding = one(check_quickly(pack), "graph/invalid")
    assert finding.where.file == file


def test_truncated_data_of_the_graph(pack: Path) -> None:
    file = pack / "qairt" / "model.data"
    file.write_bytes(file.read_bytes()[:1000])
    rehash(pack)
    assert one(check_quickly(pack), "graph/invalid").where.file == pack / "qairt" / "model.onnx"


def test_graph_that_the_checker_refuses(pack: Path) -> None:
    file = pack / "qairt" / "model.onnx"
    model = onnx.load(file, load_external_data=False)
    model.graph.node[0].op_type = "NoSuchOperator"
    file.write_bytes(model.SerializeToString())
    rehash(pack)
    finding = one(check_quickly(pack), "graph/invalid")
    assert "onnx.checker" in finding.message
    assert finding.where.file == file


def test_graph_without_the_alpha_input(pack: Path) -> None:
    edit_manifest(pack, lambda m: m["alpha"].update(tensor="strength"))
    finding = one(check_quickly(pack), "pack/graph-alpha")
    assert finding.where.tensor == "strength"
    assert "'lora_alpha'" in finding.message


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "document/invalid"),
        (b"\xff", "document/invalid"),
        (b"[]", "schema/pack"),
        (b"{}", "schema/pack"),
        (b'{"tool": NaN}', "document/invalid"),
    ],
)
def test_unusable_manifest(pack: Path, content: bytes, rule: str) -> None:
    (pack / "pack.json").write_bytes(content)
    findings = check_quickly(pack)
    assert rules(findings) == [rule]
    assert {f.where.file for f in findings} == {pack / "pack.json"}


def test_missing_manifest(tmp_path: Path) -> None:
    finding = one(check_quickly(tmp_path), "document/missing")
    assert finding.where.file == tmp_path / "pack.json"


def test_manifest_with_overlapping_slots(pack: Path) -> None:
    edit_manifest(pack, lambda m: m["use_cases"][2]["slots"][1].update(start=0))
    finding = one(check_quickly(pack), "document/invalid")
    assert "overlaps" in finding.message
    assert finding.where.field == "use_cases[2].slots[1].start"


@pytest.mark.parametrize("seed", range(18))
def test_random_damage_never_raises(pack: Path, seed: int) -> None:
    """Hashes are made to match, so that every reader meets the damage."""
    chance = random.Random(seed)
    file = pack / "qairt" / FILES[seed % len(FILES)]
    content = bytearray(file.read_bytes())
    for _ in range(chance.choice([1, 3, 30])):
        content[chance.randrange(len(content))] = chance.randrange(256)
    if chance.random() < 0.3:
        del content[chance.randrange(len(content)) :]
    file.write_bytes(content)
    rehash(pack)
    for finding in check_quickly(pack):
        assert finding.message
        assert finding.where.file is not None


@pytest.mark.parametrize("seed", range(12))
def test_random_damage_of_the_manifest_never_raises(pack: Path, seed: int) -> None:
    chance = random.Random(seed)
    file = pack / "pack.json"
    text = list(file.read_text(encoding="utf-8"))
    for _ in range(chance.choice([1, 3])):
        text[chance.randrange(len(text))] = chance.choice('0"a[]{},-.')
    file.write_text("".join(text), encoding="utf-8")
    check_quickly(pack)
