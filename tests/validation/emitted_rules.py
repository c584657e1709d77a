"""Every rule id that the sources emit, read out of their syntax trees.

Finding("pack/hash", ...)            pack/hash
view.error("hash", ...)              pack/hash: the functions that put an area before a name
f"encodings/{what}-differs"          what TABLES says for that file and text
THE_RULE.finding(...)                the constant of the catalogue
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import lora_quant
from lora_quant.findings import Severity
from lora_quant.passes.exported.decide import Remark
from lora_quant.validation import catalogue
from lora_quant.validation.kinds import SCHEMA_NAMES
from lora_quant.validation.rule import Rule

_TELLING = re.compile(r"\bFinding\(|validation\.catalogue")

PACKAGE = Path(lora_quant.__file__).parent

# Their ids belong to reports of other commands, as the index of the rules says.
_OTHER_REPORTS = ("cli/", "configure/", "runtime/", "passes/fitting.py", "validation/catalogue/")

# file or folder -> function as it is called -> place of the name among its arguments, and the ids
_FUNCTIONS: Mapping[str, Mapping[str, tuple[int, tuple[str, ...]]]] = {
    "validation/pack/": {
        "view.error": (0, ("pack/{}",)),
        "view.error_in_manifest": (0, ("pack/{}",)),
        "given.error": (0, ("pack/adapter-{}",)),
        "error": (0, ("pack/{}",)),
        "_error": (1, ("pack/{}",)),
        "_differs": (2, ("pack/{}",)),
    },
    "validation/files/adapter_check.py": {"AdapterProblem": (0, ("adapter/{}", "pack/adapter-{}"))},
    "validation/files/lora_config_check.py": {"_error": (0, ("qnn-lora-config/{}",))},
    "passes/merging/updatable_lists.py": {"_finding": (0, ("{}",))},
    "encodings/convert.py": {"_left_out": (1, ("encodings/{}",))},
}

# What passes on the name that it is given: the calls of it are looked at.
_PASSED_ON = {
    ("encodings/convert.py", "f'encodings/{rule}'"),
    ("passes/merging/updatable_lists.py", "rule"),
    ("validation/files/adapter_check.py", "f'adapter/{problem.rule}'"),
    ("validation/from_errors.py", "rule.id"),
    ("validation/files/lora_config_check.py", "f'{_AREA}/{rule}'"),
    ("validation/pack/adapters.py", "problem.rule"),
    ("validation/pack/records.py", "rule"),
    ("validation/pack/use_cases.py", "f'pack/{rule}'"),
    ("validation/pack/view.py", "f'pack/{rule}'"),
    ("validation/pack/weights.py", "rule"),
    ("validation/rule.py", "self.id"),
}

_PATTERN_FIELDS = ("alpha-pattern", "rank-pattern")
_SECTION_AREAS = ("genie", "pack", "qnn-lora-config")

# file, text of the id -> the ids that it stands for
_TABLES: dict[tuple[str, str], tuple[str, ...]] = {
    ("adapters/frame/patterns.py", "f\"adapter/competing-{field.replace('_', '-')}\""): tuple(
        f"adapter/competing-{field}" for field in _PATTERN_FIELDS
    ),
    ("adapters/frame/patterns.py", "f\"adapter/unused-{field.replace('_', '-')}\""): tuple(
        f"adapter/unused-{field}" for field in _PATTERN_FIELDS
    ),
    ("passes/exported/remarks.py", "f'exported/{remark.value}'"): tuple(
        f"exported/{remark.value}" for remark in Remark
    ),
    ("passes/merging/strength_inputs.py", "f'encodings/{what}-differs'"): (
        "encodings/alpha-differs",
        "encodings/gate-differs",
    ),
    ("validation/documents/schema_check.py", "f'schema/{name}'"): tuple(
        f"schema/{name}" for name in SCHEMA_NAMES.values()
    ),
    ("validation/files/genie_check.py", "f'{_AREA}/no-lora'"): ("genie/no-lora",),
    ("validation/files/genie_check.py", "f'{_AREA}/section-count'"): ("genie/section-count",),
    ("validation/files/lora_config_check.py", "f'{_AREA}/more-lines'"): (
        "qnn-lora-config/more-lines",
    ),
    ("validation/files/lora_config_check.py", "f'{_AREA}/characters'"): (
        "qnn-lora-config/characters",
    ),
    ("validation/pack/adapter_view.py", "f'adapter-{rule}'"): (),
    ("validation/pack/files.py", "rule"): ("pack/size", "pack/hash"),
    ("validation/pack/graph.py", "rule"): (
        "pack/graph-alpha",
        "pack/graph-gate",
        "pack/graph-prompt",
    ),
    ("validation/pack/device_configs.py", "f'pack/{rule}'"): (
        "pack/genie-use-cases",
        "pack/genie-alphas",
    ),
}
for _name in ("not-filled-in", "section-empty", "section-shared"):
    _TABLES["validation/files/sections.py", f"f'{{area}}/{_name}'"] = tuple(
        f"{area}/{_name}" for area in _SECTION_AREAS
    )
for _name in ("section-backslash", "section-missing"):
    _TABLES["validation/files/sections.py", f"f'{{area}}/{_name}'"] = tuple(
        f"{area}/{_name}" for area in _SECTION_AREAS
    )


@dataclass(frozen=True)
class Emitted:
    """Ids with the places that emit them, severities as far as they are written beside an id,
    expressions that nobody could resolve, and what is told here of expressions that are gone.
    """

    places: Mapping[str, list[str]]
    severities: Mapping[str, set[Severity]]
    unresolved: list[str]
    stale: list[str]


@cache
def emitted() -> Emitted:
    """What all of the package emits but for the reports of other commands."""
    places: dict[str, list[str]] = defaultdict(list)
    severities: dict[str, set[Severity]] = defaultdict(set)
    unresolved: list[str] = []
    met: set[tuple[str, str]] = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        if file.startswith(_OTHER_REPORTS):
            continue
        text = path.read_text(encoding="utf-8")
        if not file.startswith(tuple(_FUNCTIONS)) and _TELLING.search(text) is None:
            continue
        tree = ast.parse(text)
        for rule in _constants(tree):
            places[rule.id].append(file)
        for call in ast.walk(tree):
            if not isinstance(call, ast.Call):
                continue
            for name, template in _names(file, call):
                place = f"{file}:{call.lineno}"
                if isinstance(name, ast.Constant) and isinstance(name.value, str):
                    rule_id = template.format(name.value)
                    places[rule_id].append(place)
                    severities[rule_id] |= _severities(call)
                    continue
                key = (file, ast.unparse(name))
                met.add(key)
                for rule_id in _TABLES.get(key, ()):
                    places[rule_id].append(place)
                if key not in _TABLES and key not in _PASSED_ON:
                    unresolved.append(f"{place}: {key[1]}")
    stale = sorted(f"{file}: {text}" for file, text in {*_TABLES, *_PASSED_ON} - met)
    return Emitted(places, severities, unresolved, stale)


def _names(file: str, call: ast.Call) -> Iterator[tuple[ast.expr, str]]:
    """Expressions of rule ids in a call, each with the id that is made of it."""
    function = ast.unparse(call.func).removeprefix("self.")
    if function == "Finding":
        given = next((k.value for k in call.keywords if k.arg == "rule"), None)
        yield given or call.args[0], "{}"
    for start, functions in _FUNCTIONS.items():
        if file.startswith(start) and function in functions:
            position, templates = functions[function]
            if len(call.args) > position:
                for template in templates:
                    yield call.args[position], template


def _severities(call: ast.Call) -> set[Severity]:
    """Those that a call names; none where what it calls knows."""
    return {
        Severity[node.attr]
        for node in ast.walk(call)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "Severity"
    }


def _constants(tree: ast.Module) -> Iterator[Rule]:
    """Constants of the catalogue that a module uses, imported by name or through their module."""
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        inner = node.module.removeprefix(catalogue.__name__)
        if inner == node.module:
            continue
        for alias in node.names:
            found = getattr(_area(inner.removeprefix(".")), alias.name, None) if inner else None
            if isinstance(found, Rule):
                yield found
            elif not inner:
                modules[alias.asname or alias.name] = alias.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found = getattr(_area(modules.get(node.value.id, "")), node.attr, None)
            if isinstance(found, Rule):
                yield found


def _area(name: str) -> object:
    return getattr(catalogue, name, None)
