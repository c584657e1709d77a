"""A rule: what can be wrong, at which level it shows, why it matters and what to do.

Rule("device/block-size", Level.DEVICE, Severity.ERROR, ...).finding("blocks of 24 values", where)
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from lora_quant.errors import NOWHERE, Where
from lora_quant.findings import Finding, Severity


class Level(Enum):
    """What has to be looked at to see that a rule is broken."""

    SCHEMA = "schema"
    """One file by itself: it can be read and has the form of its kind."""
    CROSS_FILE = "cross-file"
    """Files against each other: names, shapes, ranks, hashes."""
    DEVICE = "device"
    """What a device or its tools cannot take, or take and get wrong."""


ALL_LEVELS = frozenset(Level)


@dataclass(frozen=True)
class Rule:
    """One rule. `id` is stable: `<area>/<name>` in lower case, with hyphens.

    title: what is wrong, without names and numbers. why: what would happen otherwise. mend: what
    to do. Each is plain text of whole sentences, `title` without a full stop. describes: nothing is
    wrong; the finding says what a file holds, to a person who asks for that.
    """

    id: str
    level: Level
    severity: Severity
    title: str
    why: str
    mend: str
    describes: bool = False

    @property
    def area(self) -> str:
        """The part of the id before the slash."""
        return self.id.partition("/")[0]

    def finding(self, message: str, where: Where = NOWHERE, hint: str | None = None) -> Finding:
        """This rule broken at one place; `mend` is the hint unless there is a better one."""
        return Finding(self.id, self.severity, message, where, self.mend if hint is None else hint)
