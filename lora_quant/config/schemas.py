"""JSON schemas: generated from the models for files that we own, hand-written for others.

`python -m lora_quant.config.schemas` writes the generated ones into the checkout's `schemas/`.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from lora_quant.config.adapter_params import AdapterParamsConfig
from lora_quant.config.attach_map import AttachPointMap
from lora_quant.config.documents import dump_json, parse_json
from lora_quant.config.genie import GenieConfig, GenieLora
from lora_quant.config.lora_config import LoraConfig
from lora_quant.config.manifest import Manifest
from lora_quant.config.output_files import LoraImporterConfig, LoraOutputFiles
from lora_quant.config.report import Report
from lora_quant.config.run_config import UseCaseRunConfig
from lora_quant.config.whole_files import write_files
from lora_quant.errors import ConfigError, InputMissingError, Where, did_you_mean

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
MAJOR: Final = 1

SCHEMAS: Final[dict[str, tuple[str, type[BaseModel]]]] = {
    "lora-config": ("lora_config.yaml", LoraConfig),
    "adapter-params": ("Adapter JSON", AdapterParamsConfig),
    "attach-points": ("Attach point mapping", AttachPointMap),
    "pack": ("pack.json", Manifest),
    "importer-config": ("lora_importer_config.yaml", LoraImporterConfig),
    "output-files": ("lora_output_files.yaml", LoraOutputFiles),
    "run-config": ("Run config", UseCaseRunConfig),
    "report": ("Report of a command", Report),
    "genie-lora": ("lora block of Genie", GenieLora),
    "genie-config": ("Genie configuration", GenieConfig),
}
"""Name -> title and model of each generated schema."""

FOREIGN_SCHEMAS: Final[dict[str, str]] = {
    "aimet-encodings-0.6.1": "aimet-encodings-0.6.1.schema.json",
    "aimet-encodings-1.0.0": "aimet-encodings-1.0.0.schema.json",
    "aimet-encodings-2.0.0": "aimet-encodings-2.0.0.schema.json",
    "peft-adapter-config": "peft-adapter-config.schema.json",
}
"""Name -> file of each hand-written schema."""

ALL_SCHEMAS: Final = (*SCHEMAS, *FOREIGN_SCHEMAS)
"""The names of all schemas: first of the files that we own."""

FILES: Final[dict[str, str]] = {
    "lora-config": "lora_config*.yaml",
    "adapter-params": "adapters/*.json",
    "attach-points": "attach_points*.json",
    "pack": "pack.json",
    "importer-config": "lora_importer_config.yaml",
    "output-files": "lora_output_files.yaml",
    "run-config": "run_config*.yaml",
    "report": "lora_quant_report.json",
    "genie-lora": "genie_lora.json",
    "genie-config": "genie_config*.json",
    "aimet-encodings-0.6.1": "*.0.6.1.encodings",
    "aimet-encodings-1.0.0": "*.1.0.0.encodings",
    "aimet-encodings-2.0.0": "*.2.0.0.encodings",
    "peft-adapter-config": "adapter_config.json",
}
"""Name -> the files that are for it, as a pattern for editors. `validate` goes by content; where a
kind of file has no name of its own, this is one that tells it from the others."""


class _Generator(GenerateJsonSchema):
    """Leaves out the titles that only repeat the keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False


def schema_file(name: str) -> str:
    """The file name of a schema; ConfigError if there is no such schema."""
    if name in SCHEMAS:
        return f"{name}.{MAJOR}.schema.json"
    if name in FOREIGN_SCHEMAS:
        return FOREIGN_SCHEMAS[name]
    raise ConfigError(f"there is no schema {name!r}", hint=did_you_mean(name, ALL_SCHEMAS))


def generate_schema(name: str) -> JsonSchemaValue:
    """The schema of the model that is registered as `name`."""
    title, model = SCHEMAS[name]
    body = model.model_json_schema(by_alias=True, schema_generator=_Generator, mode="validation")
    head = {
        "$schema": DIALECT,
        "$id": f"urn:lora-quant:schema:{name}:{MAJOR}",
        "title": title,
        "description": _one_line(body["description"]),
    }
    definitions = body.pop("$defs", {})
    for definition in definitions.values():
        if "description" in definition:
            definition["description"] = _one_line(definition["description"])
    tail = {"$defs": definitions} if definitions else {}
    return head | {key: part for key, part in body.items() if key not in head} | tail


def generate_schemas() -> dict[str, str]:
    """File name -> text of every generated schema."""
    return {schema_file(name): dump_json(generate_schema(name)) for name in SCHEMAS}


def schema_text(name: str) -> str:
    """The text of a schema, from the installed package or from the checkout.

    Raises ConfigError if there is no such schema, InputMissingError if its file is gone.
    """
    file = schema_file(name)
    packaged = resources.files("lora_quant").joinpath("schemas", file)
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    path = checkout_folder() / file
    if not path.is_file():
        raise InputMissingError(
            "the schema is not installed",
            where=Where(file=path),
            hint="install lora-quant again, or run python -m lora_quant.config.schemas",
        )
    return path.read_text(encoding="utf-8")


def load_schema(name: str) -> dict[str, Any]:
    """A schema as an object."""
    schema: dict[str, Any] = parse_json(schema_text(name))
    return schema


def schema_title(name: str) -> str:
    """What a schema is of, in a few words."""
    title: str = load_schema(name)["title"]
    return title


def write_schemas(names: Iterable[str], place: Path, *, force: bool) -> tuple[Path, ...]:
    """Write schemas under their own names into the folder `place`, or one into the file `place`.

    A folder is one that is there; the files appear all or none, and what holds the same already is
    left. Raises PackError if another file is there and `force` is not given, or if one cannot be
    written.
    """
    folder = place.is_dir()
    texts = {place / schema_file(n) if folder else place: schema_text(n) for n in names}
    write_files({p: text for p, text in texts.items() if not _holds(p, text)}, force=force)
    return tuple(texts)


def _holds(path: Path, text: str) -> bool:
    """Whether `path` is a file of just this text; nothing that could be endless is read."""
    data = text.encode()
    try:
        return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError:
        return False


def checkout_folder() -> Path:
    """`schemas/` beside the package, where a checkout keeps it."""
    return Path(__file__).parents[2] / "schemas"


def main() -> list[Path]:
    """Write every generated schema into the checkout; the paths that were written."""
    folder = checkout_folder()
    written = []
    for file, text in generate_schemas().items():
        path = folder / file
        path.write_text(text, encoding="utf-8", newline="\n")
        written.append(path)
    return written


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    main()
