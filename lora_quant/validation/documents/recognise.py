"""Telling from its content what a document is; its name only decides between equal candidates.

{"peft_type": "LORA", "r": 8, ...}                     ->  PEFT adapter_config.json
{"version": "1.0.0", "activation_encodings": [...]}    ->  AIMET encodings 1.0.0

A document with mistakes is still recognised as long as most of its keys speak for one kind, so
that it is checked rather than passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lora_quant.config.genie_roots import has_engines
from lora_quant.errors import Where
from lora_quant.findings import Finding, Severity
from lora_quant.validation.documents.opened import YAML_SUFFIXES
from lora_quant.validation.kinds import Kind

_KEYS: Final[dict[Kind, tuple[int, frozenset[str]]]] = {
    Kind.PEFT_CONFIG: (
        2,
        frozenset(
            {
                "peft_type",
                "base_model_name_or_path",
                "task_type",
                "inference_mode",
                "r",
                "lora_alpha",
                "lora_dropout",
                "target_modules",
                "modules_to_save",
            }
        ),
    ),
    Kind.ADAPTER_PARAMS: (2, frozenset({"name", "rank", "alpha", "target_modules"})),
    Kind.MANIFEST: (
        3,
        frozenset(
            {
                "schema_version",
                "tool",
                "mode",
                "max_rank",
                "base",
                "adapters",
                "attach_points",
                "use_cases",
                "tensors",
                "targets",
                "findings",
            }
        ),
    ),
    Kind.REPORT: (
        2,
        frozenset({"schema_version", "command", "ok", "findings", "outputs", "details"}),
    ),
}
"""How many of which keys make a document of a kind, one if it also has its name; a tie goes to
the name, and then to the larger share of the keys."""

_WITH_USE_CASES = (Kind.LORA_CONFIG, Kind.IMPORTER_CONFIG, Kind.OUTPUT_FILES)
_USE_CASE_KEYS: Final = {
    "adapter": (2, 0, 0),
    "attach_point_onnx_mapping": (2, 0, 0),
    "use-case": (1, 0, 0),
    "use_case": (0, 1, 1),
    "adapter_names": (2, 0, 0),
    "adapter_alphas": (2, 0, 0),
    "quant_updatable_tensors": (1, 0, 0),
    "model_name": (1, 2, 0),
    "quant_overrides": (1, 1, 0),
    "output_path": (0, 1, 0),
    "lora_weights": (0, 2, 1),
    "weights": (0, 1, 2),
    "graph": (0, 0, 3),
    "encodings": (0, 0, 1),
}
"""Key of a document or of its use cases -> how much it speaks for each of the three kinds."""

_DIALECTS = "json-schema.org/"

_FRAGMENT_KEYS = frozenset({"bw", "enc_type", "is_sym", "offset", "scale"})

_NAMES: Final = {
    "lora_config": Kind.LORA_CONFIG,
    "adapter_config": Kind.PEFT_CONFIG,
    "lora_importer_config": Kind.IMPORTER_CONFIG,
    "lora_output_files": Kind.OUTPUT_FILES,
    "pack": Kind.MANIFEST,
}

_LOOKED_FOR = (
    "looked for: lora_config.yaml (adapter, use-case), lora_importer_config.yaml and "
    "lora_output_files.yaml (use_case), pack.json (tool, base, use_cases, ...), PEFT "
    "adapter_config.json (peft_type), adapter JSON (name, rank, alpha, target_modules), attach "
    "point mapping (module -> list of node names), AIMET encodings (activation_encodings and "
    "param_encodings, encodings, or tensor -> entry), run config (name, adapters), report "
    "(command, ok), Genie configuration (dialog) or its lora block (alpha-tensor-name, adapters), "
    "lora_config text of the QNN provider (one line: graph name;section path), JSON schema "
    "($schema)"
)


def recognise(value: Any, path: Path) -> Kind | None:
    """The kind of a document's value, or None; `path` only lends its name."""
    if not isinstance(value, Mapping) or not value:
        return None
    named = _NAMES.get(path.stem.lower())
    if _is_json_schema(value):
        return Kind.JSON_SCHEMA
    return (
        _encodings_with_sections(value)
        or _genie(value)
        or _with_use_cases(value, named)
        or _by_keys(value, named)
        or _by_values(value, is_yaml=path.suffix.lower() in YAML_SUFFIXES)
    )


def unrecognised(path: Path, value: Any, *, severity: Severity) -> Finding:
    """The finding for a document of no known kind: what it holds, and what was looked for."""
    return Finding(
        rule="recognise/unknown",
        severity=severity,
        message=f"not a file that is known here: it holds {_content(value)}",
        where=Where(file=path),
        hint=_LOOKED_FOR if severity is Severity.ERROR else None,
    )


def _is_json_schema(value: Mapping[str, Any]) -> bool:
    """Whether a document says that it is a schema."""
    dialect = value.get("$schema")
    return isinstance(dialect, str) and _DIALECTS in dialect


def _encodings_with_sections(value: Mapping[str, Any]) -> Kind | None:
    sections = [value[k] for k in ("activation_encodings", "param_encodings") if k in value]
    version = value.get("version")
    if not sections and not ("version" in value and isinstance(value.get("encodings"), list)):
        return None
    if isinstance(version, str):
        for start, kind in (
            ("0.", Kind.ENCODINGS_0_6_1),
            ("1.", Kind.ENCODINGS_1_0_0),
            ("2.0.", Kind.ENCODINGS_2_0_0),
        ):
            if version.startswith(start):
                return kind
    # Files of 0.4.0 may have no version; their sections are objects, those of 1.0.0 lists.
    if "version" not in value and all(isinstance(section, Mapping) for section in sections):
        return Kind.ENCODINGS_0_6_1
    return Kind.ENCODINGS_OTHER


def _genie(value: Mapping[str, Any]) -> Kind | None:
    """A configuration of Genie, or the block of it that is about adapters."""
    if has_engines(value):
        return Kind.GENIE_CONFIG
    adapters = value.get("adapters")
    first = adapters[0] if isinstance(adapters, list) and adapters else None
    keys = set(first) if isinstance(first, Mapping) else set()
    if "alpha-tensor-name" in value or {"alphas", "bin-sections"} & keys:
        return Kind.GENIE_LORA
    return None


def _with_use_cases(value: Mapping[str, Any], named: Kind | None) -> Kind | None:
    """The three kinds that list use cases; `use-case` and `use_case` are easily confused."""
    if not {"use_case", "use-case", "adapter"} & set(value):
        return None
    items = value.get("use_case", value.get("use-case"))
    scores = [0.5 * (kind is named) for kind in _WITH_USE_CASES]
    for part in [value, *(items if isinstance(items, list) else ())]:
        for key in part if isinstance(part, Mapping) else ():
            for index, weight in enumerate(_USE_CASE_KEYS.get(key, ())):
                scores[index] += weight
    return _WITH_USE_CASES[scores.index(max(scores))]


def _by_keys(value: Mapping[str, Any], named: Kind | None) -> Kind | None:
    if isinstance(value.get("peft_type"), str):
        return Kind.PEFT_CONFIG
    found = []
    for kind, (least, keys) in _KEYS.items():
        count = sum(key in keys for key in value)
        if count >= (1 if kind is named else least):
            found.append((count, kind is named, count / len(keys), kind))
    if found:
        return max(found, key=lambda f: f[:3])[3]
    known = {"name", "adapters"} & set(value)
    return Kind.RUN_CONFIG if len(known) == len(value) or len(known) == 2 else None


def _by_values(value: Mapping[str, Any], *, is_yaml: bool) -> Kind | None:
    """Documents whose keys are the user's: mappings of modules, and fragments; both are JSON."""
    if is_yaml:
        return None
    entries = sum(isinstance(v, Mapping) and bool(_FRAGMENT_KEYS & set(v)) for v in value.values())
    lists = sum(
        isinstance(v, list) and all(isinstance(node, str) for node in v) for v in value.values()
    )
    if 2 * entries > len(value):
        return Kind.ENCODINGS_FRAGMENT
    return Kind.ATTACH_POINTS if 2 * lists > len(value) else None


def _content(value: Any) -> str:
    if not isinstance(value, Mapping):
        return "a list" if isinstance(value, list) else "no object"
    if not value:
        return "an empty object"
    keys = [repr(key if len(key) <= 40 else f"{key[:37]}...") for key in list(value)[:5]]
    rest = f" and {len(value) - 5} more" if len(value) > 5 else ""
    return f"the keys {', '.join(keys)}{rest}"
