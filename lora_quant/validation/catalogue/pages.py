"""The pages of the rules in docs/rules, made from the catalogue.

Rule("pack/hash", ...)  ->  docs/rules/pack/hash.md, and a row in docs/rules/README.md

`python -m lora_quant.validation.catalogue.pages` writes them into the checkout.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from lora_quant.validation.catalogue import RULES
from lora_quant.validation.catalogue.defect import AREA as DEFECT_AREA
from lora_quant.validation.rule import Level, Rule

COMMAND: Final = "python -m lora_quant.validation.catalogue.pages"
INDEX: Final = "README.md"

_GENERATED = f"<!-- Made by `{COMMAND}`: do not edit. -->"

_LEVELS: Mapping[Level, str] = {
    Level.SCHEMA: "One file by itself: it can be read and has the form of its kind.",
    Level.CROSS_FILE: "Files against each other: names, shapes, ranks, encodings, hashes.",
    Level.DEVICE: "What a device or its tools do not take, or take and get wrong.",
}

_INTRODUCTION = """\
Every rule that `lora-quant validate` can break on, by level. Ids are stable: they can be given to
`--select` and `--ignore`, and stand in every report. So can an area (`pack`) and a level
(`cross-file`). `lora-quant validate --explain RULE` prints what a page says.

The severity is the gravest that a rule is reported with. An error makes the check fail; with
`--fail-on warning` or `--fail-on note`, so do the others.

Reports of other commands have ids that are not listed here: `convert/...` and `configure/...` of
`convert-config` and `init`, `run/...` of `run`, and `error/...` for what stopped a command."""


def pages(rules: Iterable[Rule] = RULES.values()) -> dict[str, str]:
    """Path below docs/rules -> text, of every page and of the index."""
    listed = sorted(rules, key=lambda rule: rule.id)
    texts = {f"{rule.id}.md": _page(rule) for rule in listed}
    texts[INDEX] = _index(listed)
    return texts


def checkout_folder() -> Path:
    """`docs/rules` beside the package, where a checkout keeps it."""
    return Path(__file__).parents[3] / "docs" / "rules"


def main() -> list[Path]:
    """Write every page, and remove those of rules that are gone; the paths that were written."""
    folder = checkout_folder()
    texts = pages()
    for path in sorted(folder.glob("*/*.md")):
        if path.relative_to(folder).as_posix() not in texts:
            path.unlink()
    written = []
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
        written.append(path)
    return written


def _page(rule: Rule) -> str:
    return f"""\
{_GENERATED}

# {rule.id}

{_sentence(rule.title)}

| level | severity |
| --- | --- |
| {rule.level.value} | {rule.severity.value} |

## Why it matters

{rule.why}

## What to do

{rule.mend}

{_how_to_ignore(rule)}

[All rules](../{INDEX})
"""


def _how_to_ignore(rule: Rule) -> str:
    if rule.area == DEFECT_AREA:
        return "This rule cannot be ignored or deselected."
    if rule.describes:
        return "This tells nothing that is wrong: `--verbose` shows it, and reports leave it out."
    return (
        f"Where it is meant to be so, `--ignore {rule.id}` leaves it out; so does "
        f'`ignore = ["{rule.id}"]` in the table `validate` of the settings.'
    )


def _index(rules: Iterable[Rule]) -> str:
    by_level: dict[Level, dict[str, list[Rule]]] = defaultdict(lambda: defaultdict(list))
    for rule in rules:
        by_level[rule.level][rule.area].append(rule)
    parts = [_GENERATED, "# Rules", _INTRODUCTION]
    for level, text in _LEVELS.items():
        parts += [f"## {level.value}", text]
        for area, listed in by_level[level].items():
            parts += [f"### {area}", "\n".join(_table(listed))]
    return "\n\n".join(parts) + "\n"


def _table(rules: Iterable[Rule]) -> Iterator[str]:
    yield "| rule | severity | what is wrong |"
    yield "| --- | --- | --- |"
    for rule in rules:
        yield f"| [{rule.id}]({rule.id}.md) | {rule.severity.value} | {_sentence(rule.title)} |"


def _sentence(title: str) -> str:
    """A title with a full stop, and a capital unless it begins with the name of a file or field."""
    first = title.partition(" ")[0]
    if "." in first or "_" in first:
        return f"{title}."
    return f"{title[:1].upper()}{title[1:]}."


if __name__ == "__main__":
    main()
