"""Schemas: valid themselves, in step with the models, and agreeing with them on files of cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from lora_quant.config import schemas
from lora_quant.config.base_model import from_document
from lora_quant.config.documents import read_json, read_json_located, read_yaml_located
from lora_quant.config.located import LocatedDocument
from lora_quant.config.names import FOLDER_NAME_PATTERN, folder_name_problem
from lora_quant.config.schema_files import (
    FOREIGN_SCHEMAS,
    checkout_folder,
    load_schema,
    schema_file,
    schema_text,
)
from lora_quant.config.schemas import SCHEMAS, generate_schemas
from lora_quant.errors import ConfigError

CASES = Path(__file__).parent / "cases"
FIXTURES = Path(__file__).parents[1] / "fixtures"
ALL = [*SCHEMAS, *FOREIGN_SCHEMAS]


def case_files(kind: str) -> list[Any]:
    files = sorted(f for f in (CASES / kind).glob("*/*") if f.suffix in (".yaml", ".json"))
    return [pytest.param(f, id=f"{f.parent.name}/{f.stem}") for f in files]


def read(file: Path) -> LocatedDocument:
    return read_yaml_located(file) if file.suffix == ".yaml" else read_json_located(file)


@pytest.mark.parametrize("file", case_files("positive"))
def test_schema_and_model_accept(file: Path) -> None:
    name = file.parent.name
    document = read(file)
    Draft202012Validator(load_schema(name)).validate(document.value)
    if name in SCHEMAS:
        from_document(SCHEMAS[name][1], document)


@pytest.mark.parametrize("file", case_files("negative"))
def test_schema_and_model_refuse(file: Path) -> None:
    name = file.parent.name
    document = read(file)
    assert not Draft202012Validator(load_schema(name)).is_valid(document.value)
    if name in SCHEMAS:
        with pytest.raises(ConfigError) as caught:
            from_document(SCHEMAS[name][1], document)
        assert caught.value.where.file == file
        assert caught.value.where.line is not None


@pytest.mark.parametrize("name", ALL)
def test_every_schema_has_cases_of_both_kinds(name: str) -> None:
    for kind in ("positive", "negative"):
        assert any((CASES / kind / name).iterdir())


@pytest.mark.parametrize("name", ALL)
def test_schema_is_itself_valid(name: str) -> None:
    schema = load_schema(name)
    Draft202012Validator.check_schema(schema)
    assert schema["$id"].startswith("urn:lora-quant:schema:")
    assert schema["title"]
    assert schema["description"]


def test_checked_in_schemas_are_the_generated_ones() -> None:
    for file, text in generate_schemas().items():
        path = checkout_folder() / file
        current = path.read_text(encoding="utf-8") if path.is_file() else None
        assert current == text, f"{file} is out of date: run python -m lora_quant.config.schemas"


def test_folder_holds_the_known_schemas_and_no_others() -> None:
    assert {f.name for f in checkout_folder().iterdir()} == {schema_file(name) for name in ALL}


def test_ids_are_unique() -> None:
    assert len({load_schema(name)["$id"] for name in ALL}) == len(ALL)


def test_editors_learn_the_keys_of_files_not_of_python() -> None:
    keys = load_schema("lora-config")["properties"]
    assert "use-case" in keys
    assert "use_cases" not in keys


def test_unknown_schema_names_the_close_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'lora-config'"):
        schema_text("lora_config")


def test_the_regenerate_command_writes_silently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(schemas, "checkout_folder", lambda: tmp_path)
    written = schemas.main()
    assert {f.name: f.read_text(encoding="utf-8") for f in written} == generate_schemas()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(f, id=f.stem)
        for folder in ("network", "kinds")
        for f in sorted((FIXTURES / "aimet" / folder).glob("*.encodings"))
    ],
)
def test_schema_accepts_what_aimet_writes(file: Path) -> None:
    value = read_json(file)
    schema = load_schema(f"aimet-encodings-{value['version']}")
    Draft202012Validator(schema).validate(value)


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(f, id=f.parent.name)
        for f in sorted((FIXTURES / "peft").glob("*/adapter_config.json"))
    ],
)
def test_schema_accepts_what_peft_writes(file: Path) -> None:
    Draft202012Validator(load_schema("peft-adapter-config")).validate(read_json(file))


@given(
    st.text(
        st.characters(exclude_categories=["Cs"])
        | st.sampled_from('.. /\\:*?"<>|\n\t\x7f\x85¹conCONauxlptcom1 $')
    )
    | st.builds(
        str.__add__,
        st.sampled_from(["con", "AUX", "nul", "com1", "LPT³", "conin$", "com", "lpt10"]),
        st.sampled_from(["", ".", " ", ".txt", " .x", "a"]),
    )
)
def test_folder_pattern_and_code_agree(name: str) -> None:
    schema = {"pattern": FOLDER_NAME_PATTERN}
    by_schema = Draft202012Validator(schema).is_valid(name)
    problem = folder_name_problem(name)
    too_long = problem is not None and "longer" in problem
    assert by_schema == (problem is None or too_long)
