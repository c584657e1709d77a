"""Checking whatever paths a person names: files, packs, and folders of both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from lora_quant.findings import Severity
from lora_quant.validation.checked import Validation
from lora_quant.validation.found.exclusion import Exclusion
from lora_quant.validation.found.items import find_items
from lora_quant.validation.parallel import Work, check_items
from lora_quant.validation.request import EVERYTHING, Request
from lora_quant.validation.selection import EVERY_RULE, Selection


def validate_paths(
    paths: Iterable[Path],
    request: Request = EVERYTHING,
    *,
    selection: Selection = EVERY_RULE,
    exclusion: Exclusion | None = None,
    jobs: int | None = 1,
    fail_on: Severity = Severity.ERROR,
) -> Validation:
    """Check files, packs, and what is known by its name or content below folders.

    Never raises for content. A file that was named and is of no known kind is an error; one that
    was met in a folder is a note. Levels of which no rule is selected are not looked at. jobs:
    processes, None to decide by the amount; with more than one, a program that calls this needs
    the guard `if __name__ == "__main__"`.
    """
    levels = request.levels & selection.levels
    work = Work(replace(request, levels=levels), selection)
    items = tuple(find_items(paths, exclusion))
    return Validation(tuple(check_items(items, work, jobs)), fail_on)
