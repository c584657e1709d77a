"""Adapters by themselves, without a graph to compile them onto: told, and written as plain LoRA.

inspect_adapter    any kind and format -> what it adapts, and what lowering it takes
lower_adapter      any kind that is A and B, or an approximation -> a plain PEFT checkpoint
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from lora_quant import plugins
from lora_quant.adapters.adapter import Adapter, load_adapter
from lora_quant.adapters.adapter_report import AdapterReport, report_of, with_errors
from lora_quant.adapters.base_modules import BaseModules
from lora_quant.adapters.files.base_checkpoint import BaseCheckpoint
from lora_quant.adapters.lowered import Dense
from lora_quant.adapters.lowered_store import LoweredStore
from lora_quant.adapters.plain.first_lowered import Limits, lower_first
from lora_quant.adapters.plain.plain_limits import check_bias, check_plain
from lora_quant.adapters.plain.plain_lora import PlainPair, PlainShape, plain_pair, plain_shape
from lora_quant.adapters.plain.plain_parameters import kept_fields, stored_parameters
from lora_quant.errors import ConfigError, PackError, Where, some
from lora_quant.findings import Finding, Severity
from lora_quant.passes.compilation import Progress, no_progress
from lora_quant.passes.open_base_modules import open_base_modules
from lora_quant.targets.files.checkpoint_output import check_checkpoint_output
from lora_quant.targets.files.output_transaction import OutputTransaction
from lora_quant.targets.files.peft_checkpoint import FILES, PlainLora, write_peft_checkpoint


def inspect_adapter(
    path: Path | str,
    base: Path | str | None = None,
    *,
    attach_points: Path | str | None = None,
    task: int | None = None,
) -> AdapterReport:
    """What the adapter at `path` is: nothing but configurations and headers is read.

    `path` is a folder, a configuration or a weights file; `base` an ONNX graph, a safetensors file
    or index, or the folder of a model, which tells sizes that the adapter does not.
    `attach_points` is the mapping of a graph whose names do not tell its modules, or of any base
    for a kind that numbers them in the model's order. `task` chooses one of a kind that holds
    several. Raises a LoraQuantError for what cannot be read or lowered.
    """
    path = Path(path)
    adapter = _open(path, task)
    return report_of(adapter, path, _base_of(adapter, base, attach_points))


def lower_adapter(
    path: Path | str,
    output: Path | str,
    *,
    base: Path | str | None = None,
    attach_points: Path | str | None = None,
    approximate_rank: int | None = None,
    max_error: float | None = None,
    task: int | None = None,
    force: bool = False,
    progress: Progress = no_progress,
) -> AdapterReport:
    """Write the adapter at `path` as a plain LoRA of PEFT into the folder `output`.

    With `approximate_rank` and `max_error` (a relative Frobenius error, from 0 to below 1), modules
    without a low rank are approximated. `base`, `attach_points` and `task` are as for
    `inspect_adapter`. The folder appears whole or not at all; `force` replaces one that holds an
    adapter and nothing else. `progress` is told (what, done, total) by what takes long. Raises
    UnsupportedAdapterError for what plain LoRA cannot hold, AdapterError for an error above the
    limit, PackError if the folder cannot be written.
    """
    limits = _limits(approximate_rank, max_error)
    path, output = Path(path), Path(os.path.normpath(output))
    if output.resolve() == (path if path.is_dir() else path.parent).resolve():
        raise PackError(
            "the output folder is that of the adapter itself",
            where=Where(file=output),
            hint="choose another output folder",
        )
    with OutputTransaction(output, force=force, check=check_checkpoint_output) as folder:
        adapter = _open(path, task)
        check_plain(adapter, approximate=limits is not None)
        modules = _base_of(adapter, base, attach_points)
        report = report_of(adapter, path, modules)
        lowering = lower_first(adapter, modules, limits, progress)
        shapes = {
            name: plain_shape(shape, lowering.ranks.get(name, shape.rank), modules)
            for name, shape in adapter.shapes.items()
        }
        check_bias(adapter, lowering.has_bias)
        parameters = stored_parameters(adapter)
        lora = PlainLora(shapes, lowering.has_bias, parameters, kept_fields(adapter, parameters))

        def pair(module: str) -> PlainPair:
            return _pair(adapter, shapes[module], module, modules, lowering.store)

        write_peft_checkpoint(folder, lora, pair, adapter.parameter)
    findings = (*report.findings, *_findings(adapter, shapes, modules, lowering.errors))
    return replace(with_errors(report, lowering.errors), findings=findings, output=output)


def _open(path: Path, task: int | None) -> Adapter:
    folder = path if path.is_dir() else path.parent
    name = path.stem if path.is_file() and path.name not in FILES else folder.resolve().name
    rules = plugins.Instances(plugins.LOWERING_RULES)
    return load_adapter(name, path, rules, task=task)


def _limits(rank: int | None, max_error: float | None) -> Limits | None:
    if rank is None and max_error is None:
        return None
    if rank is None or max_error is None:
        missing = "approximate_rank" if rank is None else "max_error"
        given = "max_error" if rank is None else "approximate_rank"
        raise ConfigError(
            f"{given} is given without {missing}, which it belongs to",
            where=Where(field=missing),
            hint="say both, such as rank 32 and an error of 0.05 for 5 per cent",
        )
    if rank < 1:
        raise ConfigError(
            f"approximate_rank is {rank}, expected at least 1",
            where=Where(field="approximate_rank"),
        )
    if not 0 <= max_error < 1:
        raise ConfigError(
            f"max_error is {max_error}, expected from 0 to less than 1",
            where=Where(field="max_error"),
        )
    return Limits(rank, max_error)


def _base_of(
    adapter: Adapter, base: Path | str | None, attach_points: Path | str | None
) -> BaseModules | None:
    if base is None:
        return None
    mapping_file = None if attach_points is None else Path(attach_points)
    return open_base_modules(adapter, Path(base), mapping_file)


def _pair(
    adapter: Adapter, shape: PlainShape, module: str, base: BaseModules | None, store: LoweredStore
) -> PlainPair:
    """The values of one module, read or computed now unless they are in the store."""
    lowered = store.get(module) if module in store else adapter.lower(module, base)
    if isinstance(lowered, Dense):
        raise TypeError(f"{module} is dense, which its headers did not tell")
    return plain_pair(lowered, shape, Where(adapter=adapter.name, module=module))


def _findings(
    adapter: Adapter,
    shapes: Mapping[str, PlainShape],
    base: BaseModules | None,
    errors: Mapping[str, tuple[int, float]],
) -> Iterator[Finding]:
    where = Where(file=adapter.checkpoint.tensors.path, adapter=adapter.name)
    untold = [name for name, shape in adapter.shapes.items() if shape.kernel is None]
    if base is None and untold:
        yield Finding(
            rule="adapter/kernel-not-told",
            severity=Severity.NOTE,
            message="the files do not tell linear modules from convolutions: "
            f"{some(untold, most=1)} were written as linear",
            where=where,
            hint="name the base model with --base if any of them is a convolution",
        )
    convolutions = [name for name in untold if shapes[name].kernel]
    if isinstance(base, BaseCheckpoint) and convolutions:
        yield Finding(
            rule="adapter/groups-not-told",
            severity=Severity.NOTE,
            message="neither the files nor a checkpoint tell the groups of a convolution: "
            f"{some(convolutions, most=1)} were written for one group",
            where=where,
            hint="PEFT refuses the file if any of them has several: name an ONNX graph with --base",
        )
    if errors:
        worst = max(errors, key=lambda module: errors[module][1])
        yield Finding(
            rule="adapter/approximated",
            severity=Severity.WARNING,
            message=f"{len(errors)} of {len(adapter.shapes)} modules are approximated; the largest "
            f"relative Frobenius error is {errors[worst][1]:.3g}, with rank {errors[worst][0]}",
            where=replace(where, module=worst),
            hint="measure the quality of the model with it",
        )
