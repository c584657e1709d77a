"""Which findings a person wants to see: `--select device --ignore pack/stray-file`.

A selector is the id of a rule, an area (`pack`) or a level (`cross-file`). What is ignored is
counted; ignoring wins over selecting.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from lora_quant.errors import ConfigError, did_you_mean
from lora_quant.findings import Finding, Severity
from lora_quant.validation.catalogue import RULES
from lora_quant.validation.catalogue.defect import AREA as DEFECT_AREA
from lora_quant.validation.checked import Checked
from lora_quant.validation.rule import ALL_LEVELS, Level

_ALWAYS_TOLD = ("document", "recognise")
"""Areas whose errors say that a file was not looked at: without them, silence would pass for ok."""


@dataclass(frozen=True)
class Selection:
    """Selectors that `parse_selectors` accepted. Nothing in `select` stands for every rule."""

    select: frozenset[str] = frozenset()
    ignore: frozenset[str] = frozenset()

    @cached_property
    def levels(self) -> frozenset[Level]:
        """The levels of which some rule is wanted; the others need not be computed."""
        if not self.select and not self.ignore:
            return ALL_LEVELS
        return frozenset(rule.level for rule in RULES.values() if self._wants(rule.id))

    def keeps(self, finding: Finding) -> bool:
        """Whether a finding is told.

        Findings of the area `defect` always are. Errors that keep a file from being looked at are
        unless they are ignored: those of reading it, and those of its form where a rule of another
        level is selected.
        """
        rule = finding.rule
        if _area(rule) == DEFECT_AREA or self._wants(rule):
            return True
        if self._is_ignored(rule) or finding.severity is not Severity.ERROR:
            return False
        return _area(rule) in _ALWAYS_TOLD or (
            _level(rule) is Level.SCHEMA and bool(self.levels - {Level.SCHEMA})
        )

    def apply(self, checked: Checked) -> Checked:
        """What was found without what is not wanted, which is counted."""
        if not self.select and not self.ignore:
            return checked
        kept = tuple(f for f in checked.findings if self.keeps(f))
        contents = tuple(f for f in checked.contents if self.keeps(f))
        ignored = checked.ignored + len(checked.findings) - len(kept)
        return replace(checked, findings=kept, contents=contents, ignored=ignored)

    def _wants(self, rule: str) -> bool:
        selected = not self.select or not self.select.isdisjoint(_names(rule))
        return selected and not self._is_ignored(rule)

    def _is_ignored(self, rule: str) -> bool:
        return not self.ignore.isdisjoint(_names(rule))


EVERY_RULE = Selection()


def parse_selectors(texts: Iterable[str]) -> frozenset[str]:
    """Selectors out of texts with one or several between commas.

    Raises ConfigError, with the names that come closest, for one that is not known.
    """
    known = {*RULES, *(rule.area for rule in RULES.values()), *(level.value for level in Level)}
    known.discard(DEFECT_AREA)
    selectors = frozenset(part.strip() for text in texts for part in text.split(",")) - {""}
    for selector in sorted(selectors):
        if _area(selector) == DEFECT_AREA:
            raise ConfigError(
                f"{selector!r} cannot be selected or ignored: it tells of defects of lora-quant",
                hint="remove it",
            )
        if selector not in known:
            raise ConfigError(
                f"there is no rule, area or level {selector!r}", hint=did_you_mean(selector, known)
            )
    return selectors


def _names(rule: str) -> set[str]:
    """Every selector that means the rule."""
    level = _level(rule)
    names = {rule, _area(rule)}
    return names if level is None else names | {level.value}


def _area(rule: str) -> str:
    return rule.partition("/")[0]


def _level(rule: str) -> Level | None:
    known = RULES.get(rule)
    return None if known is None else known.level
