"""What a build would make of a configuration, up to the point where it would write.

config  ->  read-exported, lower-adapters, ..., merge-encodings  ->  findings, or why it stops
        ->  the weights of each use case, against their encodings

A configuration does not say with which options it is built. If a build without any stops at
encodings, those are tried that encodings may call for; if it stops at a base that holds branches,
the graph may be final.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora_quant.config.lora_config import LoraConfig
from lora_quant.config.options import BuildOptions
from lora_quant.config.use_case_graphs import base_model
from lora_quant.errors import EncodingsError, GraphError, LoraQuantError
from lora_quant.findings import Finding
from lora_quant.graph.base.base_graph import BaseGraph, open_base
from lora_quant.graph.exported.recognise import recognise_branches
from lora_quant.passes.compilation import Compilation, Progress, no_progress
from lora_quant.passes.merging.weight_ranges import WeightRanges
from lora_quant.passes.runner import FINAL_PIPELINE, PIPELINE, default_passes, run_passes
from lora_quant.passes.weight_values import shared_weights, use_case_weights

_Options = tuple[str, BuildOptions]

# Use cases that were calibrated as a whole need the first, and biases of 2.0.0 the second.
_LOOSER: tuple[_Options, ...] = (
    ("--mode all", BuildOptions(mode="all")),
    ("--mode all --fixed-conflict base", BuildOptions(mode="all", fixed_conflict="base")),
)
_AS_IS = "--no-create-lora-graph"


@dataclass(frozen=True)
class DryRun:
    """What a build notices. `options`: those that it needs, "" for none; `reason`: why it does."""

    findings: tuple[Finding, ...]
    options: str = ""
    reason: LoraQuantError | None = None


def dry_run(
    config: LoraConfig,
    *,
    base: BaseGraph | None = None,
    config_file: Path | None = None,
    progress: Progress = no_progress,
) -> DryRun:
    """Run the passes that write nothing, with default options and then with others.

    `config` has paths that can be opened. `base` is its base graph if that is open already; it is
    edited, as by a build. No file is written, and weights of the base are read as by a build: by
    rows, for the kinds of adapters that need them. Those of adapters pass by, one attach point at a
    time. Raises the LoraQuantError that would stop a
    build with each of the options.
    """
    start = _start(config, config_file, progress, base)
    try:
        return DryRun(_noticed(start, BuildOptions()))
    except EncodingsError as error:
        return _first_that_works(start, _LOOSER, error)
    except GraphError as error:
        start = _restart(start)
        if not recognise_branches(start.base).points:
            raise
        return _as_is(start, error)


def _as_is(start: Compilation, error: GraphError) -> DryRun:
    """The graph as one that is final; `error` is why it is none to add branches to."""
    options = BuildOptions(create_lora_graph=False)
    try:
        return DryRun(_noticed(start, options), _AS_IS, error)
    except EncodingsError as refused:
        final = [(f"{_AS_IS} {text}", replace(o, create_lora_graph=False)) for text, o in _LOOSER]
        return _first_that_works(start, final, refused)
    except LoraQuantError:
        raise error from None


def _first_that_works(
    start: Compilation, choices: Sequence[tuple[str, BuildOptions]], error: EncodingsError
) -> DryRun:
    for text, options in choices:
        findings = _if_encodings_fit(_restart(start), options)
        if findings is not None:
            return DryRun(findings, text, error)
    raise error


def _if_encodings_fit(start: Compilation, options: BuildOptions) -> tuple[Finding, ...] | None:
    try:
        return _noticed(start, options)
    except EncodingsError:
        return None


def _start(
    config: LoraConfig, config_file: Path | None, progress: Progress, base: BaseGraph | None
) -> Compilation:
    return Compilation(
        config=config,
        options=BuildOptions(),
        base=base or open_base(base_model(config, config_file)),
        config_file=config_file,
        progress=progress,
    )


def _restart(start: Compilation) -> Compilation:
    """The same with a base that nothing has edited."""
    return replace(start, base=open_base(start.base.path))


def _noticed(start: Compilation, options: BuildOptions) -> tuple[Finding, ...]:
    order = PIPELINE if options.create_lora_graph else FINAL_PIPELINE
    passes = default_passes(order[: order.index("emit-packs")])
    done = run_passes(replace(start, options=options), passes)
    return (*done.findings, *_of_values(done))


def _of_values(compilation: Compilation) -> Iterator[Finding]:
    """What targets notice while weights pass by: grids that end before the values do."""
    if compilation.merged is None:
        return
    for use_case in compilation.config.use_cases:
        ranges = WeightRanges()
        for point in use_case_weights(compilation, use_case.name):
            ranges.observe(point)
        for record, values in shared_weights(compilation, use_case.name):
            ranges.take(record.name, values)
        yield from compilation.merged.for_use_case(use_case.name, ranges)[1]
