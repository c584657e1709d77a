"""Genie configurations and texts for the QNN provider: by themselves, and inside a pack."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lora_quant.findings import Finding, Severity
from lora_quant.validation.documents.schema_check import Depth
from lora_quant.validation.found.recognise_file import is_lfs_pointer
from lora_quant.validation.kinds import Kind
from lora_quant.validation.pack.check import check_pack
from lora_quant.validation.validate import validate_paths
from tests.validation.packs import edit_json, edit_manifest, edit_text, one, rules

GENIE = "qairt/genie_lora.json"
TEXT = "qairt/both/qnn_lora_config.txt"


def found(path: Path) -> tuple[Finding, ...]:
    return validate_paths([path]).findings


def adapter(name: str, *sections: str, alphas: tuple[str, ...] = ("a", "b")) -> dict[str, Any]:
    return {"version": 1, "name": name, "alphas": list(alphas), "bin-sections": list(sections)}


def block(*adapters: dict[str, Any]) -> dict[str, Any]:
    return {"version": 1, "alpha-tensor-name": "lora_alpha", "adapters": list(adapters)}


def whole(lora: dict[str, Any], **binary: Any) -> dict[str, Any]:
    model = {"version": 1, "type": "binary", "binary": {**binary, "lora": lora}}
    return {"dialog": {"version": 1, "type": "basic", "engine": {"version": 1, "model": model}}}


def saved(folder: Path, document: dict[str, Any], *sections: str) -> Path:
    for name in sections:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"section")
    path = folder / "genie_config.json"
    path.write_text(json.dumps(document, indent=2), encoding="utf-8")
    return path


def in_pack(pack: Path) -> tuple[Finding, ...]:
    return check_pack(pack, depth=Depth.QUICK)


def lora_of(document: dict[str, Any]) -> dict[str, Any]:
    lora: dict[str, Any] = document["dialog"]["engine"]["model"]["binary"]["lora"]
    return lora


# alone: Genie


@pytest.mark.parametrize("form", ["whole", "block"])
def test_a_filled_in_configuration_is_sound(form: str, tmp_path: Path) -> None:
    lora = block(adapter("one", "one.bin"), adapter("two", "sections/two.bin"))
    document = whole(lora, **{"ctx-bins": ["base.bin"]}) if form == "whole" else lora
    path = saved(tmp_path, document, "one.bin", "sections/two.bin")
    (item,) = validate_paths([path]).checked
    kind = Kind.GENIE_CONFIG if form == "whole" else Kind.GENIE_LORA
    assert (item.kind, item.findings) == (kind, ())


def test_a_placeholder_is_an_error_in_a_file_that_is_checked_alone(pack: Path) -> None:
    (finding,) = found(pack / GENIE)
    assert (finding.rule, finding.severity) == ("genie/not-filled-in", Severity.ERROR)
    assert finding.message == "not filled in yet: the sections of 'base', 'tone', 'both'"
    assert finding.where.line is not None
    assert finding.hint is not None
    assert "qnn-context-binary-generator" in finding.hint


def test_one_forgotten_section_is_named(tmp_path: Path) -> None:
    lora = block(adapter("one", "one.bin"), adapter("two", "<FILL IN: path>"))
    path = saved(tmp_path, lora, "one.bin")
    finding = one(found(path), "genie/not-filled-in")
    assert finding.message == "not filled in yet: the section of 'two'"
    assert finding.where.use_case == "two"


def test_a_section_that_is_not_there(tmp_path: Path) -> None:
    path = saved(tmp_path, whole(block(adapter("one", "oen.bin"))), "one.bin")
    finding = one(found(path), "genie/section-missing")
    assert "there is no file 'oen.bin' beside this one" in finding.message
    assert finding.where.field is not None
    assert finding.where.field.endswith("adapters[0].bin-sections[0]")


@pytest.mark.parametrize("text", ["/data/local/tmp/one.bin", "C:\\models\\one.bin"])
def test_paths_of_the_device_are_not_looked_for(text: str, tmp_path: Path) -> None:
    assert found(saved(tmp_path, block(adapter("one", text)))) == ()


def test_backslashes_are_warned_of(tmp_path: Path) -> None:
    path = saved(tmp_path, block(adapter("one", "sections\\one.bin")), "sections/one.bin")
    assert one(found(path), "genie/section-backslash").severity is Severity.WARNING


@pytest.mark.parametrize("text", ["x" * 5000 + ".bin", "a\0b"])
def test_a_path_that_no_system_has(text: str, tmp_path: Path) -> None:
    assert rules(found(saved(tmp_path, block(adapter("one", text))))) == ["genie/section-missing"]


def test_two_use_cases_with_one_section(tmp_path: Path) -> None:
    lora = block(adapter("one", "one.bin"), adapter("two", "one.bin"))
    finding = one(found(saved(tmp_path, lora, "one.bin")), "genie/section-shared")
    assert "'one' and 'two' have the same section 'one.bin'" in finding.message


@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_section_is_refused(text: str, tmp_path: Path) -> None:
    finding = one(found(saved(tmp_path, block(adapter("one", text)))), "genie/section-empty")
    assert finding.severity is Severity.ERROR
    assert "it names no file" in finding.message


def test_a_context_binary_without_a_section(tmp_path: Path) -> None:
    document = whole(block(adapter("one", "one.bin")), **{"ctx-bins": ["1.bin", "2.bin"]})
    finding = one(found(saved(tmp_path, document, "one.bin")), "genie/section-count")
    assert "1 bin-sections for 2 ctx-bins" in finding.message


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (block(adapter("one", "1.bin"), adapter("one", "2.bin")), "listed twice"),
        (block(adapter("one", "1.bin", alphas=("a", "a"))), "strength 'a' .* is named twice"),
        (block(adapter("one", "1.bin"), adapter("two", "2.bin", "3.bin")), "2 bin-sections, 'one'"),
        (
            block(adapter("one", "1.bin"), adapter("two", "2.bin", alphas=("a",))),
            "1 alphas, 'one' has 2",
        ),
    ],
)
def test_adapters_that_contradict_each_other(
    lora: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = saved(tmp_path, whole(lora), "1.bin", "2.bin", "3.bin")
    (finding,) = found(path)
    assert finding.rule == "document/invalid"
    assert finding.where.line is not None
    assert re.search(message, finding.message)
    assert "problems" not in finding.message


def test_a_misspelt_key_of_the_block(tmp_path: Path) -> None:
    wrong = {**adapter("one", "one.bin"), "bin_sections": ["one.bin"]}
    del wrong["bin-sections"]
    (finding,) = found(saved(tmp_path, whole(block(wrong)), "one.bin"))
    assert finding.rule == "schema/genie-config"
    assert "the key 'bin-sections' is missing" in finding.message


def test_a_configuration_without_the_block_is_a_note(tmp_path: Path) -> None:
    path = saved(tmp_path, {"dialog": {"version": 1, "engine": {"version": 1}}})
    (finding,) = found(path)
    assert (finding.rule, finding.severity) == ("genie/no-lora", Severity.NOTE)


def test_every_engine_of_a_dialog_is_looked_at(tmp_path: Path) -> None:
    engine = whole(block(adapter("one", "none.bin")))["dialog"]["engine"]
    path = saved(tmp_path, {"dialog": {"engine": [{"role": "draft"}, engine]}})
    finding = one(found(path), "genie/section-missing")
    assert finding.where.field is not None
    assert finding.where.field.startswith("dialog.engine[1].model")


# alone: the text for the QNN provider


def text_file(folder: Path, content: str | bytes, name: str = "qnn_lora_config.txt") -> Path:
    (folder / "one.bin").write_bytes(b"section")
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", ["qnn_lora_config.txt", "tone_lora_config.txt", "tone.txt", "x"])
def test_a_filled_in_text_is_sound_under_any_name(name: str, tmp_path: Path) -> None:
    (item,) = validate_paths([text_file(tmp_path, "graph;one.bin\n", name)]).checked
    assert (item.kind, item.findings) == (Kind.QNN_LORA_CONFIG, ())


def test_a_text_as_it_was_built_is_not_filled_in(pack: Path) -> None:
    findings = found(pack / TEXT)
    assert rules(findings) == ["qnn-lora-config/not-filled-in"]
    assert [f.severity for f in findings] == [Severity.ERROR, Severity.ERROR]
    graph, section = (f.hint or "" for f in findings)
    assert "qnn-context-binary-utility" in graph
    assert "qnn-context-binary-generator" in section


@pytest.mark.parametrize(
    ("content", "rule", "message"),
    [
        ("", "form", "empty"),
        ("\n", "form", "empty"),
        ("graph one.bin\n", "form", "no semicolon"),
        ("graph;one.bin;\n", "form", "2 semicolons"),
        (";one.bin\n", "form", "the graph name is empty"),
        ("graph;\n", "form", "the section path is empty"),
        ("graph; one.bin\n", "characters", "white space around the section path"),
        ("graph\t;one.bin\n", "characters", "white space around the graph name"),
        ("\ufeffgraph;one.bin\n", "characters", "byte order mark"),
        ("gra\tph;one.bin\n", "characters", "control characters"),
        (b"graph;\xff.bin\n", "characters", "UTF-8"),
        ("x" * 70_000, "size", "more than 65536 bytes"),
        ("graph;two.bin\n", "section-missing", "no file 'two.bin'"),
    ],
)
def test_a_text_that_an_engine_would_misread(
    content: str | bytes, rule: str, message: str, tmp_path: Path
) -> None:
    (finding,) = found(text_file(tmp_path, content))
    assert (finding.rule, finding.severity) == (f"qnn-lora-config/{rule}", Severity.ERROR)
    assert message in finding.message
    assert finding.hint


def test_quotes_are_one_mistake(tmp_path: Path) -> None:
    (tmp_path / "one.bin").touch()
    findings = found(text_file(tmp_path, 'graph;"one.bin"\n'))
    assert rules(findings) == ["qnn-lora-config/characters"]


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("graph;one.bin\r\n", "characters"),
        ("graph;one.bin\nother;one.bin\n", "more-lines"),
        ("graph;sections\\one.bin\n", "section-backslash"),
    ],
)
def test_what_only_some_engines_misread_is_warned_of(
    content: str, rule: str, tmp_path: Path
) -> None:
    (finding,) = found(text_file(tmp_path, content))
    assert (finding.rule, finding.severity) == (f"qnn-lora-config/{rule}", Severity.WARNING)


def test_a_line_without_a_line_end_is_sound(tmp_path: Path) -> None:
    assert found(text_file(tmp_path, "graph;one.bin")) == ()


def test_copies_are_found_in_a_folder(pack: Path, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    for path in (GENIE, TEXT):
        shutil.copy(pack / path, copies)
    kinds = [item.kind for item in validate_paths([copies]).checked]
    assert kinds == [Kind.GENIE_CONFIG, Kind.QNN_LORA_CONFIG]


def test_another_text_is_not_taken_for_one(tmp_path: Path) -> None:
    for number, content in enumerate(("a;b\nc;d\n", "name: a\nb;c\n", "a\0;b")):
        path = tmp_path / f"{number}.txt"
        path.write_text(content, encoding="utf-8")
        (item,) = validate_paths([path]).checked
        assert item.kind is not Kind.QNN_LORA_CONFIG


# anything


LEAVES = st.none() | st.booleans() | st.integers(-1, 2) | st.text(max_size=3) | st.just(1.0)
KEYS = st.sampled_from(
    [*whole(block()), *block(), *adapter("a"), "engine", "model", "binary", "lora", "ctx-bins"]
)
DOCUMENTS = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


PLACES = st.sampled_from(["adapters", "alphas", "bin-sections", "engine", "version"])


@given(value=DOCUMENTS, place=PLACES)
def test_no_genie_configuration_stops_the_check(
    value: Any, place: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lora = block(adapter("one", "one.bin"), adapter("two", "two.bin"))
    document = whole(lora)
    for part in (lora, lora["adapters"][1], document["dialog"]):
        if place in part:
            part[place] = value
    folder = tmp_path_factory.mktemp("any")
    for content in (document, lora, value):
        result = validate_paths([saved(folder, content)])
        assert all(f.rule and f.message for f in result.findings)


@given(
    content=st.binary(max_size=40) | st.text("ab;./\\ \"'\n\r<\ufeff", max_size=20).map(str.encode)
)
def test_no_text_stops_the_check(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is not sound is told; what is sound has the form that the engine reads."""
    assume(not is_lfs_pointer(content))
    path = text_file(tmp_path_factory.mktemp("any"), content)
    (item,) = validate_paths([path]).checked
    assert item.kind is Kind.QNN_LORA_CONFIG
    if not item.findings:
        graph, section = content.decode().removesuffix("\n").split(";")
        assert graph
        assert section
        assert (graph + section).isprintable()


# inside a pack


def test_a_fresh_pack_is_sound_and_one_note_tells_what_is_open(pack: Path) -> None:
    (item,) = validate_paths([pack]).checked
    (finding,) = item.findings
    assert (finding.rule, finding.severity) == ("pack/not-filled-in", Severity.NOTE)
    assert "4 files" in finding.message
    assert "genie_lora.json" in finding.message
    assert f"`lora-quant fill-in {pack.as_posix()} SECTIONS`" in (finding.hint or "")
    assert check_pack(pack) == ()


def test_the_block_of_another_pack(pack: Path) -> None:
    edit_json(pack / GENIE, lambda d: lora_of(d).update({"alpha-tensor-name": "alpha"}))
    finding = one(in_pack(pack), "pack/genie-alpha")
    assert "fed to 'alpha', the input of the graph is 'lora_alpha'" in finding.message
    assert finding.where.file == pack / GENIE


def test_a_use_case_that_the_block_misspells(pack: Path) -> None:
    edit_json(pack / GENIE, lambda d: lora_of(d)["adapters"][1].update(name="tune"))
    finding = one(in_pack(pack), "pack/genie-use-cases")
    assert finding.message == "the use case 'tune' is not one of the pack"
    assert finding.hint == "did you mean 'tone'?"


def test_a_use_case_that_the_block_lacks(pack: Path) -> None:
    edit_json(pack / GENIE, lambda d: lora_of(d)["adapters"].pop(1))
    finding = one(in_pack(pack), "pack/genie-use-cases")
    assert finding.message == "the block lacks use cases of the pack: 'tone'"


def test_more_strengths_than_the_input_has_entries(pack: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        for item in lora_of(document)["adapters"]:
            item["alphas"].append("third")

    edit_json(pack / GENIE, edit)
    findings = [f for f in in_pack(pack) if f.rule == "pack/genie-alphas"]
    assert [f.where.use_case for f in findings] == ["base", "tone", "both"]
    assert "3 strengths are named, the input 'lora_alpha' has 2" in findings[0].message


def test_strengths_in_another_order_than_the_slots(pack: Path) -> None:
    edit_json(pack / GENIE, lambda d: lora_of(d)["adapters"][2]["alphas"].reverse())
    findings = [f for f in in_pack(pack) if f.rule == "pack/genie-alphas"]
    assert [f.where.use_case for f in findings] == ["both", "both"]
    assert "the strength 'tone' is entry 1, the adapter of that name has the slot 0" in (
        findings[0].message
    )


def test_a_file_of_the_pack_without_the_block(pack: Path) -> None:
    edit_json(pack / GENIE, lambda d: d["dialog"]["engine"].update(model=None))
    assert "no lora block" in one(in_pack(pack), "pack/genie-alpha").message


@pytest.mark.parametrize("document", [{}, {"dialog": None}, {"adapters": 3}, {"later": []}])
def test_another_document_in_the_place_of_the_block(document: dict[str, Any], pack: Path) -> None:
    def edit(found: dict[str, Any]) -> None:
        found.clear()
        found.update(document)

    edit_json(pack / GENIE, edit)
    assert "no lora block" in one(in_pack(pack), "pack/genie-alpha").message


def test_a_section_that_the_pack_does_not_have(pack: Path) -> None:
    edit_json(
        pack / GENIE,
        lambda d: lora_of(d)["adapters"][1].update({"bin-sections": ["tone.bin"]}),
    )
    assert one(in_pack(pack), "pack/section-missing").where.use_case == "tone"


def test_a_damaged_line_in_a_pack(pack: Path) -> None:
    edit_text(pack / TEXT, ";", ",")
    finding = one(in_pack(pack), "qnn-lora-config/form")
    assert finding.where.file == pack / TEXT


def test_a_pack_lacks_the_text_of_a_use_case(pack: Path) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        files = manifest["targets"][0]["files"]
        files[:] = [f for f in files if f["path"] != TEXT]

    edit_manifest(pack, edit)
    (pack / TEXT).unlink()
    finding = one(in_pack(pack), "pack/use-case-files")
    assert "'qnn-lora-config'" in finding.message


def test_a_pack_of_an_earlier_version_has_neither(pack: Path) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        files = manifest["targets"][0]["files"]
        files[:] = [f for f in files if f["role"] not in ("genie-lora", "qnn-lora-config")]

    edit_manifest(pack, edit)
    for path in (pack / "qairt").rglob("*"):
        if path.name in ("genie_lora.json", "qnn_lora_config.txt"):
            path.unlink()
    assert found(pack) == ()
