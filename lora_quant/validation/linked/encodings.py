"""Encodings of any version against the graph that they are of.

    names       every entry is of a tensor of the graph, in the section where it belongs
    shapes      one scale per output channel, or per block of a weight
    biases      32-bit grids are those of input times weight
    coverage    what linear nodes read and give has a grid

Names of branches are let through where the graph has none: encodings of a use case are held against
the base graph, to which its branches are added later. A fragment covers the branches alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lora_quant.config.lora_config import LoraConfig
from lora_quant.encodings.branch_names import find_branch_names
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.encodings.kinds import BLOCKWISE, NumberKind
from lora_quant.errors import LoraQuantError, Where, did_you_mean, some
from lora_quant.findings import Finding
from lora_quant.validation.catalogue import encodings_of_graph as rules
from lora_quant.validation.documents.document_check import DocumentCheck, check_document
from lora_quant.validation.documents.entry_places import Places, entry_places
from lora_quant.validation.linked.base_of import base_of
from lora_quant.validation.linked.encoding_shapes import shape_findings
from lora_quant.validation.linked.graph_of import facts_of
from lora_quant.validation.request import Request

if TYPE_CHECKING:
    from lora_quant.graph.files.graph_facts import GraphFacts, TensorFact
    from lora_quant.graph.files.linear_facts import LinearFact

_BIAS_BITS = 32
# Each scale, and their product, may have been rounded to float32: three times half a unit of
# 2**-23, taken as four.
_BIAS_ROUNDING = 2.0**-22
_FLOAT_BITS = {"float16": 16, "bfloat16": 16, "float": 32, "double": 64}
_RULES = {rule.id: rule for rule in rules.RULES}
_MOST_TOLD = 20  # tensors of one file that break the same rule
_MOST_COMPARED = 2000  # names that are searched for similar ones: it takes 10 us for each


def check_encodings(check: DocumentCheck, request: Request) -> Iterator[Finding]:
    """Findings of a document of encodings against the base of the request; none without one."""
    if (
        request.base is None
        or check.document is None
        or not isinstance(check.content, EncodingFile)
    ):
        return
    facts = base_of(request.base, facts_of)
    if isinstance(facts, Finding):
        yield facts
        return
    yield from encodings_against_graph(check.content, facts, entry_places(check.document))


def encodings_of_config(config: LoraConfig) -> Iterator[Finding]:
    """Each use case's encodings against the graph of the use case; what cannot be read is left out.

    Names that the graph does not have are for the passes of a build to tell, which bring the names
    of an exported use case into those of the base.
    """
    adapters = [adapter.name for adapter in config.adapter]
    seen = set()
    for use_case in config.use_cases:
        pair = (use_case.encodings, use_case.model)
        if use_case.encodings is None or pair in seen:
            continue
        seen.add(pair)
        check = check_document(use_case.encodings)
        if check.document is None or not isinstance(check.content, EncodingFile):
            continue
        try:
            facts = facts_of(use_case.model)
        except LoraQuantError:
            continue
        places = entry_places(check.document)
        for finding in encodings_against_graph(check.content, facts, places, adapters=adapters):
            if finding.rule != rules.NOT_IN_GRAPH.id:
                yield replace(finding, where=replace(finding.where, use_case=use_case.name))


def encodings_against_graph(
    file: EncodingFile,
    facts: GraphFacts,
    places: Places,
    *,
    branches: bool = False,
    adapters: Iterable[str] = (),
) -> Iterator[Finding]:
    """Everything that is wrong between a file and a graph; never raises for content.

    places: tensor -> where its entry stands. branches: the graph is known to have the
    branches that the file speaks of. Where a graph has none, their names may be absent from it,
    also those that exporters make of the names of `adapters`.
    """
    known = {name: e for name, e in file.encodings.items() if name in facts.tensors}
    yield from _unknown(file, facts, places, branches, adapters)
    yield from _sections(file, facts, known, places)
    yield from _first_of_each_rule(_tensors(known, facts, places), places)
    yield from _biases(known, facts, places)
    if file.version is not None:
        yield from _coverage(known, facts, places)


def _tensors(known: dict[str, Encoding], facts: GraphFacts, places: Places) -> Iterator[Finding]:
    for name, encoding in known.items():
        fact = facts.tensors[name]
        yield from _type(name, encoding, fact, places)
        yield from shape_findings(name, encoding, fact, places)


def _first_of_each_rule(findings: Iterable[Finding], places: Places) -> Iterator[Finding]:
    """The first of many findings of a rule, and the number of the others.

    A file of another graph has thousands.
    """
    counts: Counter[str] = Counter()
    for finding in findings:
        counts[finding.rule] += 1
        if counts[finding.rule] <= _MOST_TOLD:
            yield finding
    for rule, count in counts.items():
        if count > _MOST_TOLD:
            message = f"{count - _MOST_TOLD} more tensors of this kind are not shown"
            yield _RULES[rule].finding(message, places(None))


def _unknown(
    file: EncodingFile,
    facts: GraphFacts,
    places: Places,
    branches: bool,
    adapters: Iterable[str],
) -> Iterator[Finding]:
    unknown = [name for name in file.encodings if name not in facts.tensors]
    if unknown and not branches and not find_branch_names(facts.tensors, adapters=adapters):
        added = find_branch_names(file.encodings, adapters=adapters)
        unknown = [name for name in unknown if name not in added]
    if not unknown:
        return
    first = unknown[0]
    many = f"{len(unknown)} entries are" if len(unknown) > 1 else "the entry is"
    yield rules.NOT_IN_GRAPH.finding(
        f"{many} of no tensor of {facts.path.name}: {some(unknown)}",
        places(first),
        did_you_mean(first, _similar(first, facts.tensors)),
    )


def _similar(name: str, names: Iterable[str]) -> list[str]:
    """Candidates for a comparison letter by letter: all, or of many those that end alike."""
    found = list(names)
    for length in (2, 4, 8, 16):
        if len(found) <= _MOST_COMPARED:
            break
        found = [other for other in found if other[-length:] == name[-length:]]
    return found[:_MOST_COMPARED]


def _sections(
    file: EncodingFile, facts: GraphFacts, known: Iterable[str], places: Places
) -> Iterator[Finding]:
    """A constant that a node holds is a parameter for some quantizers, an activation for others."""
    if file.params is None:
        return
    wrong = [n for n in known if n in file.params and not facts.tensors[n].is_param]
    if wrong:
        yield rules.ACTIVATION_AS_PARAM.finding(
            f"{_count(wrong, 'activation')} under param_encodings: {some(wrong)}", places(wrong[0])
        )
    wrong = [
        n
        for n in known
        if n not in file.params and facts.tensors[n].axis is not None and n not in facts.constants
    ]
    if wrong:
        yield rules.PARAM_AS_ACTIVATION.finding(
            f"{_count(wrong, 'weight')} under activation_encodings: {some(wrong)}", places(wrong[0])
        )


def _count(names: list[str], what: str) -> str:
    return f"{len(names)} {what}{'s are' if len(names) > 1 else ' is'} listed"


def _type(name: str, encoding: Encoding, fact: TensorFact, places: Places) -> Iterator[Finding]:
    if fact.dtype is None:
        return
    bits = _FLOAT_BITS.get(fact.dtype)
    if bits is None and not fact.dtype.startswith("float"):
        yield rules.OF_INTEGERS.finding(f"the tensor is {fact.dtype} in the graph", places(name))
    elif bits is not None and encoding.kind is NumberKind.FLOAT and encoding.bits > bits:
        yield rules.WIDER_FLOAT.finding(
            f"float of {encoding.bits} bits for a tensor that is {fact.dtype} in the graph",
            places(name),
        )


def _biases(known: dict[str, Encoding], facts: GraphFacts, places: Places) -> Iterator[Finding]:
    done: set[str] = set()
    for linear in facts.linears:
        bias = None if linear.bias is None else known.get(linear.bias)
        if bias is None or linear.bias is None or linear.bias in done:
            continue
        if bias.scale is None or bias.bits != _BIAS_BITS:
            continue
        done.add(linear.bias)
        yield from _bias(linear, linear.bias, bias, known, places)


def _bias(
    linear: LinearFact, name: str, bias: Encoding, known: dict[str, Encoding], places: Places
) -> Iterator[Finding]:
    x, w = (_grid_of(names, known) for names in linear.reads)
    if x is None or w is None or x.scale is None or w.scale is None or bias.scale is None:
        return
    if x.scale.ndim or w.granularity in BLOCKWISE or bias.granularity in BLOCKWISE:
        return  # there is no single product per channel
    expected = np.atleast_1d(x.scale * w.scale)
    scale = np.atleast_1d(bias.scale)
    if 1 not in (scale.size, expected.size) and scale.size != expected.size:
        yield rules.BIAS_SCALE.finding(
            f"{scale.size} scales for the bias of {linear.node!r}, whose weight has "
            f"{expected.size}",
            places(name),
        )
        return
    ratio = scale / expected
    worst = int(np.argmax(np.abs(np.log(ratio))))
    if abs(float(ratio[worst]) - 1.0) > _BIAS_ROUNDING:
        yield rules.BIAS_SCALE.finding(
            f"scale {float(scale[worst % scale.size])!r} of channel {worst}, expected "
            f"{float(expected[worst % expected.size])!r}, the product of the scales of "
            f"{linear.reads[0][0]!r} and {linear.reads[1][-1]!r}",
            places(name),
        )


def _grid_of(names: tuple[str, ...], known: dict[str, Encoding]) -> Encoding | None:
    return next((known[name] for name in names if name in known), None)


def _coverage(known: dict[str, Encoding], facts: GraphFacts, places: Places) -> Iterator[Finding]:
    missing = list(dict.fromkeys(name for name in _uncovered(known, facts)))
    if missing:
        many = f"{len(missing)} tensors" if len(missing) > 1 else "a tensor"
        where = places(None)
        yield rules.UNCOVERED.finding(
            f"{many} of linear nodes of {facts.path.name} without an encoding: {some(missing)}",
            Where(file=where.file, tensor=missing[0]),
        )


def _uncovered(known: dict[str, Encoding], facts: GraphFacts) -> Iterator[str]:
    for linear in facts.linears:
        for names in (*linear.reads, linear.gives):
            if not names or any(name in known for name in names):
                continue
            fact = facts.tensors.get(names[0])
            if fact is None or fact.dtype is None or fact.dtype in _FLOAT_BITS:
                yield names[0]
