"""JSON schemas generated from the models, for the files that we own.

`python -m lora_quant.config.schemas` writes the generated ones into the checkout's `schemas/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from lora_quant.config.adapter_params import AdapterParamsConfig
from lora_quant.config.attach_map import AttachPointMap
from lora_quant.config.documents import dump_json
from lora_quant.config.genie import GenieConfig, GenieLora
from lora_quant.config.lora_config import LoraConfig
from lora_quant.config.manifest import Manifest
from lora_quant.config.output_files import LoraImporterConfig, LoraOutputFiles
from lora_quant.config.report import Report
from lora_quant.config.run_config import UseCaseRunConfig
from lora_quant.config.schema_files import MAJOR, checkout_folder, schema_file

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

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


class _Generator(GenerateJsonSchema):
    """Leaves out the titles that only repeat the keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False


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
