"""What devices and AIMET do not take in one file of encodings, whatever graph it is of.

    blocks of 24 values                      device/block-size
    "is_symmetric": true in 0.6.1            device/json-bool
    a range of 1e-9                          device/empty-range
    int8 with its 0 at code 28               device/odd-offset, device/off-centre-weight
    q.lora_A.weight in 4 bits                device/branch-in-4-bits
    a grid of 12 bits                        device/no-number-type

A file has thousands of entries that were all made in the same way: each rule is reported once, with
the number of tensors and the first of them. With a graph, what meets at its nodes is looked at as
well, and activations with a scale per channel. Offsets above 0, a second entry of a tensor and
block scales out of their range are refused by the schemas and readers already.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_quant.encodings.branch_names import Role, find_branch_names
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.encodings.kinds import Granularity
from lora_quant.errors import LoraQuantError, some
from lora_quant.findings import Finding
from lora_quant.validation.catalogue import device as rules
from lora_quant.validation.documents.document_check import DocumentCheck
from lora_quant.validation.documents.entry_places import Places, entry_places
from lora_quant.validation.linked.graph_of import facts_of
from lora_quant.validation.request import Request
from lora_quant.validation.rule import Rule

if TYPE_CHECKING:
    from lora_quant.graph.files.graph_facts import GraphFacts
    from lora_quant.graph.files.linear_facts import LinearFact

_SMALLEST_BLOCK = 16
# 1e-5 itself is fine after a scale was rounded to float32.
_SMALLEST_RANGE = 1e-5 * (1 - 2.0**-20)
_BIAS_BITS = 32
_BITS_OF_TYPES = (2, 4, 8, 16, 32)
_WIDE_BITS, _NARROW_BITS = 16, 8
_FEW_BITS = 4


def check_encodings(check: DocumentCheck, request: Request) -> Iterator[Finding]:
    """Findings of one document, with what meets in the base of the request if there is one."""
    if check.document is None or not isinstance(check.content, EncodingFile):
        return
    places = entry_places(check.document)
    yield from _json_bools(check.document.value, places)
    yield from encodings_for_devices(check.content, places)
    if request.base is None:
        return
    try:
        facts = facts_of(request.base)
    except LoraQuantError:
        return  # the checks between files tell of it
    yield from meetings_for_devices(check.content, facts, places)


def encodings_for_devices(
    file: EncodingFile, places: Places, *, branch_weights: Iterable[str] | None = None
) -> Iterator[Finding]:
    """Findings of the entries by themselves; never raises for content.

    branch_weights: names of A and B, None to tell them by their spelling.
    """
    found: dict[Rule, list[str]] = {}
    weights = _branch_weights(file) if branch_weights is None else frozenset(branch_weights)
    for name, encoding in file.encodings.items():
        for rule in _broken(name, encoding, weights, file.params):
            found.setdefault(rule, []).append(name)
    for rule in rules.RULES:
        if rule in found:
            yield _of(rule, found[rule], file, places)


def meetings_for_devices(
    file: EncodingFile, facts: GraphFacts, places: Places
) -> Iterator[Finding]:
    """What tensors cannot be in the graph that they are of; never raises for content."""
    yield from refused_meetings(file, facts, places)
    bare = []
    for linear in facts.linears:
        weight, bias = _weight_with_input(linear, file, facts), linear.bias
        if weight is not None and bias is not None and bias not in file.encodings:
            bare += [bias] if _is_vector(facts, bias) else []
    if bare and file.version is not None:  # a fragment has the grids of branches alone
        names = list(dict.fromkeys(bare))
        yield rules.FLOAT_BIAS.finding(
            f"no encoding for {len(names)} bias{'es' * (len(names) > 1)} of quantized nodes of "
            f"{facts.path.name}: {some(names)}",
            places(names[0]),
        )


def refused_meetings(file: EncodingFile, facts: GraphFacts, places: Places) -> Iterator[Finding]:
    """Those that the HTP refuses; never raises for content."""
    wide = []
    for linear in facts.linears:
        weight = _weight_with_input(linear, file, facts)
        if weight is not None:
            x = next(name for name in linear.reads[0] if name in file.encodings)
            bits = file.encodings[x].bits, file.encodings[weight].bits
            wide += [weight] if bits == (_NARROW_BITS, _WIDE_BITS) else []
    if wide:
        yield _of(rules.WIDE_WEIGHT, wide, file, places)
    # What is read as a weight may be one that nodes before it moved: its grid has channels.
    weights = {name for linear in facts.linears for name in linear.reads[1]}
    read_or_given = (n for linear in facts.linears for n in (*linear.reads[0], *linear.gives))
    many = [
        name
        for name in dict.fromkeys(read_or_given)
        if name in file.encodings
        and name not in weights
        and not (name in facts.tensors and facts.tensors[name].is_param)
        and file.encodings[name].scale is not None
        and file.encodings[name].step_scale.size > 1
    ]
    if many:
        yield _of(rules.ACTIVATION_CHANNELS, many, file, places)


def _weight_with_input(linear: LinearFact, file: EncodingFile, facts: GraphFacts) -> str | None:
    """The weight of a node that computes with integers: both of what it reads have a grid."""
    x, w = (_first(names, file.encodings) for names in linear.reads)
    if x is None or w is None or w not in facts.tensors or not facts.tensors[w].is_param:
        return None
    one, other = file.encodings[x], file.encodings[w]
    return None if one.scale is None or other.scale is None else w


def _is_vector(facts: GraphFacts, name: str) -> bool:
    """What is added to a product may be a table, of positions for example."""
    shape = facts.tensors[name].shape if name in facts.tensors else None
    return shape is not None and len(shape) == 1


def _broken(
    name: str, encoding: Encoding, branch_weights: frozenset[str], params: frozenset[str] | None
) -> Iterator[Rule]:
    if encoding.scale is None:
        return
    size = encoding.block_size
    if size is not None and (size < _SMALLEST_BLOCK or size & (size - 1)):
        yield rules.BLOCK_SIZE
    if encoding.bits == _BIAS_BITS:
        yield rules.BIAS_ENTRIES
        return
    if (encoding.compressed_bits or encoding.bits) not in _BITS_OF_TYPES:
        yield rules.NO_NUMBER_TYPE
    if float(np.min(encoding.step_scale)) * encoding.steps < _SMALLEST_RANGE:
        yield rules.EMPTY_RANGE
    is_weight = name in branch_weights or _is_linear_weight(name, encoding, params)
    is_centred = bool((encoding.stored_offset == -(2.0 ** (encoding.bits - 1))).all())
    if not is_centred:
        if encoding.symmetric:
            yield rules.ODD_OFFSET
        if is_weight and encoding.bits <= _NARROW_BITS:
            yield rules.OFF_CENTRE_WEIGHT
    if is_weight and encoding.bits == _WIDE_BITS:
        yield rules.NEEDS_ARCH_73
    if name in branch_weights and (encoding.compressed_bits or encoding.bits) <= _FEW_BITS:
        yield rules.BRANCH_IN_4_BITS


def _is_linear_weight(name: str, encoding: Encoding, params: frozenset[str] | None) -> bool:
    """Scales per channel or block are those of a weight, in every version."""
    is_param = params is None or name in params
    return is_param and encoding.granularity is not Granularity.PER_TENSOR


def _branch_weights(file: EncodingFile) -> frozenset[str]:
    found = find_branch_names(file.encodings)
    return frozenset(name for name, b in found.items() if b.role in (Role.A, Role.B))


def _of(rule: Rule, names: list[str], file: EncodingFile, places: Places) -> Finding:
    unique = list(dict.fromkeys(names))
    detail = _detail(rule, file.encodings[unique[0]])
    many = f"{len(unique)} tensors: {some(unique)}" if len(unique) > 1 else f"{unique[0]!r}"
    return rule.finding(f"{detail} of {many}", places(unique[0]))


def _detail(rule: Rule, encoding: Encoding) -> str:
    if rule is rules.BLOCK_SIZE:
        return f"blocks of {encoding.block_size} values"
    if rule is rules.ACTIVATION_CHANNELS:
        return f"{encoding.step_scale.size} scales"
    if rule is rules.EMPTY_RANGE:
        return f"a range of {float(np.min(encoding.step_scale)) * encoding.steps:.3g}"
    if rule in (rules.ODD_OFFSET, rules.OFF_CENTRE_WEIGHT):
        offset = encoding.stored_offset.reshape(-1)
        odd = offset[np.flatnonzero(offset != -(2.0 ** (encoding.bits - 1)))[0]] + 0.0  # not -0
        return f"the offset {odd:g} in {encoding.bits} bits"
    return f"the {encoding.compressed_bits or encoding.bits}-bit grid"


def _json_bools(document: Any, places: Places) -> Iterator[Finding]:
    """JSON true where AIMET expects text; sections of objects are those of 0.6.1."""
    wrong = [
        name
        for section in ("activation_encodings", "param_encodings")
        for name, entries in _mapping(_mapping(document).get(section)).items()
        if isinstance(entries, list) and any(_is_true(entry) for entry in entries)
    ]
    if wrong:
        many = f"{len(wrong)} tensors: {some(wrong)}" if len(wrong) > 1 else repr(wrong[0])
        yield rules.JSON_BOOL.finding(f'"is_symmetric": true of {many}', places(wrong[0]))


def _is_true(entry: Any) -> bool:
    return type(entry) is dict and entry.get("is_symmetric") is True


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _first(names: tuple[str, ...], known: Mapping[str, Encoding]) -> str | None:
    return next((name for name in names if name in known), None)
