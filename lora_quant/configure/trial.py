"""What a build would make of a configuration, told in few lines.

config  ->  dry run  ->  one finding of each rule, or why it stops
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from lora_quant.config.lora_config import LoraConfig
from lora_quant.errors import LoraQuantError
from lora_quant.findings import Finding, Severity
from lora_quant.passes.compilation import Progress, no_progress
from lora_quant.passes.dry_run import dry_run
from lora_quant.passes.fitting import error_finding


@dataclass(frozen=True)
class Trial:
    """What a build notices, one finding of each rule, and the options that it needs."""

    findings: tuple[Finding, ...] = ()
    options: str = ""


def try_build(config: LoraConfig, progress: Progress = no_progress) -> Trial:
    """Try a build with default options, and with those that it may call for.

    `config` has paths that can be opened; nothing is written. What would stop the build is a
    finding that is an error.
    """
    try:
        found = dry_run(config, progress=progress)
    except LoraQuantError as error:
        return Trial((error_finding(error),))
    findings = tuple(_first_of_each(found.findings))
    if found.reason is None:
        return Trial(findings)
    needed = Finding(
        "configure/needs-options",
        Severity.WARNING,
        f"a build needs {found.options}: {found.reason.message}",
        found.reason.where,
        found.reason.hint,
    )
    return Trial((needed, *findings), found.options)


def _first_of_each(findings: Iterable[Finding]) -> Iterator[Finding]:
    """A build tells all of them; here they are many lines on a file that is not built yet."""
    found = [f for f in findings if f.severity is not Severity.NOTE]
    counts = Counter(f.rule for f in found)
    seen: set[str] = set()
    for finding in found:
        if finding.rule in seen:
            continue
        seen.add(finding.rule)
        more = counts[finding.rule] - 1
        text = f"{finding.message} (and {more} more of the kind)" if more else finding.message
        yield replace(finding, message=text)
