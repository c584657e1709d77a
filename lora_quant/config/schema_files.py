"""The JSON schemas as files: their names, and their texts from the package or the checkout.

The models that most of them are made from are not needed here (see lora_quant.config.schemas).
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, Final

from lora_quant.config.documents import parse_json
from lora_quant.config.whole_files import write_files
from lora_quant.errors import ConfigError, InputMissingError, Where, did_you_mean

MAJOR: Final = 1

FOREIGN_SCHEMAS: Final[dict[str, str]] = {
    "aimet-encodings-0.6.1": "aimet-encodings-0.6.1.schema.json",
    "aimet-encodings-1.0.0": "aimet-encodings-1.0.0.schema.json",
    "aimet-encodings-2.0.0": "aimet-encodings-2.0.0.schema.json",
    "peft-adapter-config": "peft-adapter-config.schema.json",
}
"""Name -> file of each hand-written schema."""

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

ALL_SCHEMAS: Final = tuple(FILES)
"""The names of all schemas: first of the files that we own."""


def schema_file(name: str) -> str:
    """The file name of a schema; ConfigError if there is no such schema."""
    if name not in FILES:
        raise ConfigError(f"there is no schema {name!r}", hint=did_you_mean(name, ALL_SCHEMAS))
    return FOREIGN_SCHEMAS.get(name, f"{name}.{MAJOR}.schema.json")


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
