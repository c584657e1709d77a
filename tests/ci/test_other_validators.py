"""The schemas in the hands of validators that share no code with ours.

jsonschema-rs is written in Rust; check-jsonschema reads files by itself and is run as CI runs it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from ruamel.yaml import YAML

from lora_quant.config.schema_files import ALL_SCHEMAS, checkout_folder, load_schema, schema_file
from tests.quality.paths import ROOT, run
from tests.sample import CONFIG

CASES = ROOT / "tests" / "config" / "cases"
FIXTURES = ROOT / "tests" / "fixtures"
SAMPLE = ROOT / "samples" / "tiny_llama"
CHECK = [sys.executable, "-m", "check_jsonschema"]


def content(file: Path) -> Any:
    """YAML by a reader of version 1.2, which check-jsonschema uses as well."""
    text = file.read_text(encoding="utf-8")
    return YAML(typ="safe", pure=True).load(text) if file.suffix == ".yaml" else json.loads(text)


def case_files(kind: str, name: str) -> list[Path]:
    return [f for f in sorted((CASES / kind / name).iterdir()) if f.suffix in (".yaml", ".json")]


@pytest.mark.parametrize("name", ALL_SCHEMAS)
def test_a_validator_in_rust_agrees_on_every_case(name: str) -> None:
    schema = load_schema(name)
    jsonschema_rs.meta.validate(schema)
    validator = jsonschema_rs.Draft202012Validator(schema)
    for file in case_files("positive", name):
        assert validator.is_valid(content(file)), file.name
    for file in case_files("negative", name):
        assert not validator.is_valid(content(file)), file.name


def test_what_the_sample_and_the_tools_write_passes() -> None:
    files = [
        ("lora-config", CONFIG),
        *(("peft-adapter-config", f) for f in SAMPLE.rglob("adapter_config.json")),
        *(("peft-adapter-config", f) for f in FIXTURES.glob("peft/*/adapter_config.json")),
        *(
            (f"aimet-encodings-{content(f)['version']}", f)
            for f in (FIXTURES / "aimet" / "network").glob("*.encodings")
        ),
    ]
    assert {name for name, _ in files} > {"lora-config", "peft-adapter-config"}
    for name, file in files:
        assert jsonschema_rs.is_valid(load_schema(name), content(file)), file


@pytest.mark.slow
def test_check_jsonschema_takes_all_schemas_and_tells_files_apart() -> None:
    folder = checkout_folder()
    schemas = [str(folder / schema_file(name)) for name in ALL_SCHEMAS]
    done = run([*CHECK, "--check-metaschema", *schemas])
    assert done.returncode == 0, done.stdout
    schema = str(folder / schema_file("lora-config"))
    done = run([*CHECK, "--schemafile", schema, str(CONFIG)])
    assert done.returncode == 0, done.stdout
    broken = CASES / "negative" / "lora-config" / "alpha_is_text.yaml"
    done = run([*CHECK, "--schemafile", schema, str(broken)])
    assert done.returncode == 1
    assert "adapter_alphas" in done.stdout
