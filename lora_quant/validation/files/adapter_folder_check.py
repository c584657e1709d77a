"""One adapter by itself: a PEFT folder, or a file of any format that is read here.

Everything that loading it for a build would refuse or remark is found, and the values are looked
at, which a build does only when it writes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lora_quant import plugins
from lora_quant.adapters.adapter import Adapter, adapter_of
from lora_quant.adapters.adapter_report import report_of
from lora_quant.adapters.files.checkpoint import Checkpoint, open_checkpoint
from lora_quant.adapters.files.tensor_source import RenamedTensors, TensorSource
from lora_quant.adapters.formats.detect import open_weights
from lora_quant.adapters.frame.tasks import TaskRule
from lora_quant.errors import LoraQuantError, Where
from lora_quant.findings import Finding
from lora_quant.validation.catalogue.adapter import CONTENT, VALUES, ZERO_FACTOR
from lora_quant.validation.documents.text_places import with_lines_of_files
from lora_quant.validation.files.stored_tensors import StoredValues, stored_values
from lora_quant.validation.from_errors import finding_of

_B_FACTORS = ("lora_B", "lora_embedding_B")


def check_adapter_folder(path: Path) -> tuple[Finding, ...]:
    """Findings `adapter/...` of a folder, a configuration or a weights file; never raises.

    Those that the reader has are kept as they are. Values are looked at of an adapter that can be
    lowered: of any other, why it cannot is told alone.
    """
    try:
        checkpoint = open_checkpoint(path)
        rules = plugins.Instances(plugins.LOWERING_RULES)
        tasks = _tasks(checkpoint, rules.get(checkpoint.config.peft_type))
        adapter = adapter_of(path.stem, checkpoint, rules, task=0 if tasks > 1 else None)
        content = _content(adapter, path, tasks)
        return (*_placed(adapter.findings), *_values(adapter), content)
    except LoraQuantError as error:
        return _placed((finding_of(error, shown=error.where.file or path),))


def _tasks(checkpoint: Checkpoint, rule: object) -> int:
    """How many tasks an adapter holds; its tensors serve all, so the first stands for them."""
    return rule.tasks(checkpoint) if isinstance(rule, TaskRule) else 1


def _placed(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """With the line of each field, and without the name of the adapter: it is that of the file."""
    unnamed = (replace(f, where=replace(f.where, adapter=None)) for f in findings)
    return tuple(with_lines_of_files(unnamed))


def _values(adapter: Adapter) -> Iterator[Finding]:
    tensors = adapter.checkpoint.tensors
    stored = open_weights(tensors.path)
    found: dict[str, StoredValues] = {}
    for values in stored_values(stored):
        found[values.name] = values
        if values.not_finite:
            count = math.prod(stored.info(values.name).shape)
            yield VALUES.finding(
                f"{values.not_finite} of {count} values are NaN or Inf",
                Where(file=tensors.path, tensor=values.name),
            )
    factors = [name for name in tensors.names if any(f".{b}." in f".{name}." for b in _B_FACTORS)]
    origins = {origin for name in factors for origin in _originals(tensors, name)}
    if origins and all(name in found and found[name].all_zero for name in origins):
        yield ZERO_FACTOR.finding(
            f"all {len(origins)} tensors of B are zero", Where(file=tensors.path)
        )


def _originals(tensors: TensorSource, name: str) -> tuple[str, ...]:
    return tensors.originals(name) if isinstance(tensors, RenamedTensors) else (name,)


def _content(adapter: Adapter, path: Path, tasks: int) -> Finding:
    report = report_of(adapter, path)
    told = [f"{report.kind} ({report.format})", f"{len(report.modules)} modules"]
    if adapter.rank:
        told.append(f"rank {adapter.rank}, scale {adapter.scale:g}")
    if tasks > 1:
        told.append(f"{tasks} tasks, of which the first was looked at")
    if report.parameters:
        told.append(f"replaces {len(report.parameters)} parameters")
    if report.prompt is not None:
        told.append(f"a soft prompt {list(report.prompt.shape)}")
    if report.obstacle is not None:
        told.append(f"not plain LoRA: {report.obstacle}")
    return CONTENT.finding("; ".join(told), Where(file=adapter.checkpoint.tensors.path), hint="")
