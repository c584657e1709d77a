"""The table of adapter kinds and formats in docs/adapters.md.

What a kind is called and how it computes is in its rule; what its checkpoints take, and how far its
results are from PEFT's, was measured on the fixtures (tests/fixtures/measure_kinds.py).

`python -m lora_quant.adapters.table` writes the page into the checkout's `docs/`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from lora_quant import plugins
from lora_quant.adapters.contract import LoweringRule
from lora_quant.adapters.formats.detect import FORMATS
from lora_quant.config.documents import read_json
from lora_quant.errors import InputMissingError, Where

COMMAND: Final = "python -m lora_quant.adapters.table"
MEASURE: Final = "python -m tests.fixtures.measure_kinds"
_REFUSED = "refused"
_BUILD: Final[Mapping[str, str]] = {
    "low-rank": "yes",
    "scaled": "yes",
    "gated": "yes",
    "dense": "--merge, --approximate",
    "prompt": "yes, fed as inputs",
    "parameters": "yes",
    _REFUSED: "no",
}
_LOWER: Final[Mapping[str, str]] = {
    "low-rank": "yes",
    "scaled": "--approximate",
    "gated": "no",
    "dense": "--approximate",
    "prompt": "no",
    "parameters": "no",
    _REFUSED: "no",
}

_INTRODUCTION = f"""# Adapters

Every kind is lowered, per module, to

    y = g * (W (h * x) + b)  +  B (s * (A x))  +  c

`lora-quant inspect ADAPTER` tells what one adapter is. `lora-quant build` compiles it onto a graph;
`lora-quant lower` writes it as plain LoRA. This page is generated: change the rules and run
`{COMMAND}`.

## Formats

What a file is called does not matter; what it is told by is in it.

"""

_KINDS = """
## Kinds

| class | meaning |
| --- | --- |
| low-rank | A, B and s, maybe a bias c |
| scaled | g or h as well: outputs or inputs of the base's module are scaled |
| gated | s depends on the token: a gate that is fed, or a router |
| dense | no low rank: into the weights (`--merge`), or the best low rank within an error \
(`--approximate --max-error`) |
| prompt | inputs that the adapter brings, no weight is changed |
| parameters | parameters of the base are replaced |
| refused | known by name, and refused with the reason and the way out |

A kind has several classes where its settings decide. "Base" is what lowering reads of the base
model, of at least one setting. The error is the largest difference to what PEFT computes, relative
to the largest entry of the update, over all checkpoints of the kind among the fixtures; PEFT's own
roundings to float32, of the sum of a large weight and a small update for one, are in it. PEFT
decomposes the base in float32: where singular values at the cut were close, OSF was up to 8.5e-5
and PiSSA up to 1.7e-5 away from it, over some hundred random configurations.

"""


def page(measured: Mapping[str, Any]) -> str:
    """The text of docs/adapters.md; `measured` is the content of measured.json."""
    formats = [(one.name, one.signature) for one in FORMATS]
    kinds = [_row(kind, rule, measured.get(kind, {})) for kind, rule in built_in_rules().items()]
    heads = ("kind", "class", "update", "rank", "base", "build", "lower", "checkpoints", "error")
    return "".join(
        [
            _INTRODUCTION,
            *_table(("format", "told by"), formats),
            _KINDS,
            *_table(heads, kinds),
        ]
    )


def built_in_rules() -> Mapping[str, LoweringRule]:
    """Every rule of this package by kind, sorted; not those of plugins."""
    rules: Mapping[str, LoweringRule] = plugins.Instances(plugins.LOWERING_RULES)
    own = plugins.__name__.partition(".")[0]  # this module may be run as __main__
    return {
        kind: rules[kind]
        for kind in sorted(rules)
        if type(rules[kind]).__module__.partition(".")[0] == own
    }


def checkout_folder() -> Path:
    """The checkout that the package lies in."""
    return Path(__file__).parents[2]


def read_measured() -> Mapping[str, Any]:
    """Kind -> what was measured; InputMissingError outside of a checkout."""
    file = checkout_folder() / "tests" / "fixtures" / "kinds" / "measured.json"
    if not file.is_file():
        raise InputMissingError(
            "the measured errors are not there", where=Where(file=file), hint=f"run {MEASURE}"
        )
    measured: Mapping[str, Any] = read_json(file)
    return measured


def main() -> Path:
    """Write the page into the checkout; its path."""
    path = checkout_folder() / "docs" / "adapters.md"
    path.write_text(page(read_measured()), encoding="utf-8", newline="\n")
    return path


def _row(kind: str, rule: LoweringRule, facts: Mapping[str, Any]) -> tuple[str, ...]:
    classes: list[str] = facts.get("classes", [])
    needs = [need for need in facts.get("needs", []) if need != "nothing"]
    error = facts.get("error")
    return (
        kind,
        ", ".join(classes),
        getattr(rule, "form", "") or _first_line(rule),
        getattr(rule, "rank", "") or "-",
        ", ".join(needs) or "-",
        _united(_BUILD, classes),
        _united(_LOWER, classes),
        str(facts.get("checkpoints", 0)),
        "-" if error is None else ("0" if error == 0 else f"{error:.0e}"),
    )


def _united(words: Mapping[str, str], classes: list[str]) -> str:
    """One word if all classes agree, else each with its class."""
    answers = {words[one]: one for one in reversed(classes)}
    if len(answers) == 1:
        return next(iter(answers))
    return "; ".join(f"{one}: {words[one]}" for one in classes)


def _first_line(rule: LoweringRule) -> str:
    return (inspect.getdoc(type(rule)) or "").partition("\n")[0].removesuffix(".")


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |\n"
    yield f"|{' --- |' * len(heads)}\n"
    for row in rows:
        cells = [cell.replace("|", "\\|") for cell in row]
        yield f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    main()
