"""Names of tensors that a converter makes equal.

/a/b.1, /a/b/1    ->    _a_b_1, _a_b_1
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from lora_quant.errors import Where, some
from lora_quant.findings import Finding
from lora_quant.validation.catalogue.device import NAME_CLASH

_REPLACED = re.compile(r"[^0-9A-Za-z_]")
_MOST = 5


def name_clashes(names: Iterable[str], shown: Path) -> Iterator[Finding]:
    """Groups of names that are told apart by replaced characters alone, the first of many."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_REPLACED.sub("_", name), []).append(name)
    clashing = [group for group in groups.values() if len(group) > 1]
    for group in clashing[:_MOST]:
        yield NAME_CLASH.finding(
            f"{some(group)} are one name to the converter", Where(file=shown, tensor=group[0])
        )
    if len(clashing) > _MOST:
        yield NAME_CLASH.finding(
            f"{len(clashing) - _MOST} more groups of such names are not shown", Where(file=shown)
        )
