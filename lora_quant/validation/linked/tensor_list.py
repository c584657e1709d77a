"""A list of tensors against the base of the request: every name is a tensor of the graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_quant.encodings.branch_names import find_branch_names
from lora_quant.errors import LoraQuantError, Where, did_you_mean, some
from lora_quant.findings import Finding
from lora_quant.validation.catalogue.lists_of_graph import NOT_STORED, UNKNOWN_TENSOR
from lora_quant.validation.documents.document_check import DocumentCheck
from lora_quant.validation.from_errors import finding_of
from lora_quant.validation.linked.base_of import base_of
from lora_quant.validation.linked.graph_of import facts_of
from lora_quant.validation.request import Request
from lora_quant.validation.rule import Rule

if TYPE_CHECKING:
    from lora_quant.graph.files.graph_facts import GraphFacts

_WEIGHTS = "lora_tensor_names"
_MOST = 20


def check_tensor_list(check: DocumentCheck, request: Request) -> Iterator[Finding]:
    """The first 20 names that are wrong, each at its line; nothing without a base."""
    if check.document is None or request.base is None:
        return
    from lora_quant.passes.merging.updatable_lists import read_tensor_list

    facts = base_of(request.base, facts_of)
    if isinstance(facts, Finding):
        yield facts
        return
    path = check.document.path
    try:
        names = read_tensor_list(path)
    except (LoraQuantError, OSError) as error:
        if isinstance(error, LoraQuantError):
            yield finding_of(error, shown=path)
        return
    unknown = [name for name in names if name not in facts.tensors]
    branches = find_branch_names(unknown)
    unknown = [name for name in unknown if name not in branches]
    what = f"{facts.path.name} has no tensor"
    yield from _at_lines(UNKNOWN_TENSOR, path, unknown, what, facts)
    if path.stem == _WEIGHTS:
        known = (name for name in names if name in facts.tensors)
        others = [name for name in known if not facts.tensors[name].is_param]
        what = f"{facts.path.name} has no initializer"
        yield from _at_lines(NOT_STORED, path, others, what, facts)


def _at_lines(
    rule: Rule, path: Path, names: Sequence[str], what: str, facts: GraphFacts
) -> Iterator[Finding]:
    if not names:
        return
    lines = _lines(path, set(names[:_MOST]))
    for name in names[:_MOST]:
        fact = facts.tensors.get(name)
        told = "" if fact is None else f", which is there as: {fact.role.value}"
        where = Where(file=path, line=lines.get(name), tensor=name)
        hint = rule.mend
        if fact is None:
            near = [other for other in facts.tensors if other[-4:] == name[-4:]][:1000]
            hint = f"{did_you_mean(name, near)} {rule.mend}" if near else rule.mend
        yield rule.finding(f"{what} {name!r}{told}", where, hint)
    if len(names) > _MOST:
        rest = list(names[_MOST:])
        yield rule.finding(f"{what} of {len(rest)} more names: {some(rest)}", Where(file=path))


def _lines(path: Path, names: set[str]) -> dict[str, int]:
    """The line of each name, where it is first."""
    found: dict[str, int] = {}
    text = path.read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() in names:
            found.setdefault(line.strip(), number)
    return found
