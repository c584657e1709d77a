"""What a build would make of a configuration, up to the point where it would write.

config  ->  read-exported, lower-adapters, ..., merge-encodings  ->  findings, or why it stops
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from lora_quant.config.lora_config import LoraConfig
from lora_quant.config.options import BuildOptions
from lora_quant.config.use_case_graphs import base_model
from lora_quant.configure.fitting import error_finding
from lora_quant.errors import EncodingsError, LoraQuantError
from lora_quant.findings import Finding, Severity
from lora_quant.graph.base.base_graph import open_base
from lora_quant.passes.compilation import Compilation, Progress, no_progress
from lora_quant.passes.runner import PIPELINE, default_passes, run_passes

# Use cases that were calibrated as a whole need the first, and biases of 2.0.0 the second.
_LOOSER = (
    ("--mode all", BuildOptions(mode="all")),
    ("--mode all --fixed-conflict base", BuildOptions(mode="all", fixed_conflict="base")),
)
_PASSES = PIPELINE[: PIPELINE.index("emit-packs")]


@dataclass(frozen=True)
class Trial:
    """What a build notices, one finding of each rule, and the options that it needs."""

    findings: tuple[Finding, ...] = ()
    options: str = ""


def try_build(config: LoraConfig, progress: Progress = no_progress) -> Trial:
    """Try a build with default options, and with those that encodings may call for.

    `config` has paths that can be opened; nothing is written. What would stop the build is a
    finding that is an error.
    """
    try:
        return _tried(config, progress)
    except LoraQuantError as error:
        return Trial((error_finding(error),))


def _tried(config: LoraConfig, progress: Progress) -> Trial:
    try:
        return Trial(_noticed(config, BuildOptions(), progress))
    except EncodingsError as error:
        first = error
    for text, options in _LOOSER:
        try:
            findings = _noticed(config, options, progress)
        except EncodingsError:
            continue
        needed = Finding(
            "configure/needs-options",
            Severity.WARNING,
            f"a build needs {text}: {first.message}",
            first.where,
            first.hint,
        )
        return Trial((needed, *findings), text)
    raise first


def _noticed(config: LoraConfig, options: BuildOptions, progress: Progress) -> tuple[Finding, ...]:
    start = Compilation(
        config=config,
        options=options,
        base=open_base(base_model(config)),
        progress=progress,
    )
    return tuple(_first_of_each(run_passes(start, default_passes(_PASSES)).findings))


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
