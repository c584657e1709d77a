"""Adapter files of a pack against its manifest and its graph.

The engines look at none of this: they take a file of another graph, keep the default of what a
file lacks, and find out in the middle of a run that two ranks do not meet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from lora_quant.config.manifest import MANIFEST_FILE
from lora_quant.config.manifest_records import AlphaRecord, PackFile, TargetRecord, UseCaseRecord
from lora_quant.engines.onnxruntime import spelt
from lora_quant.errors import LoraQuantError, some
from lora_quant.findings import Finding
from lora_quant.validation.files.adapter_check import adapter_problems
from lora_quant.validation.files.adapter_file import read_adapter_file
from lora_quant.validation.pack.adapter_parts import check_parts, check_ranks
from lora_quant.validation.pack.adapter_view import REBUILD, AdapterView
from lora_quant.validation.pack.overridable import Default
from lora_quant.validation.pack.view import PackView

ROLE = "adapter"
_ALPHA = "alpha"


def check_adapter_files(view: PackView, target: TargetRecord) -> Iterator[Finding]:
    """Where there are inputs to replace, there are adapter files.

    A graph may have none to replace, such as that of soft prompts alone: its files hold no tensors,
    as `check_adapter` sees to. That every use case has one is a rule for all kinds of files of use
    cases.
    """
    if not target.inputs or any(file.role == ROLE for file in target.files):
        return
    yield view.error(
        "adapter-files",
        f"the target {target.name!r} has inputs and no adapter files that replace them",
        MANIFEST_FILE,
        hint=REBUILD,
    )


def check_adapter(
    view: PackView,
    target: TargetRecord,
    file: PackFile,
    defaults: Mapping[str, Default] | None,
) -> Iterator[Finding]:
    """One file of a use case; `defaults` are of the target's graph, None if it is unusable."""
    try:
        given = AdapterView(view, target, file, read_adapter_file(view.locate(file.path)))
        yield from _problems(given)
        yield from _version(given)
        yield from _names(given)
        yield from _types(given)
        yield from check_parts(given)
        if defaults is not None:
            yield from check_ranks(given, defaults)
        for use_case in view.manifest.use_cases:
            if use_case.name == file.use_case:
                yield from _use_case(given, use_case)
    except LoraQuantError as error:
        yield view.error(
            "adapter-format",
            error.message,
            file.path,
            hint=error.hint,
            use_case=file.use_case,
            tensor=error.where.tensor,
        )


def _problems(given: AdapterView) -> Iterator[Finding]:
    """What is wrong with any adapter file."""
    for problem in adapter_problems(given.adapter):
        yield given.error(problem.rule, problem.message, tensor=problem.tensor, hint=problem.hint)


def _version(given: AdapterView) -> Iterator[Finding]:
    """The model version names the graph and its base."""
    target = given.target
    if given.adapter.model_version != target.fingerprint:
        yield given.error(
            "version",
            f"the file was made for the graph {given.adapter.model_version}, that of the target "
            f"{target.name!r} is {target.fingerprint}",
        )


def _names(given: AdapterView) -> Iterator[Finding]:
    """Only inputs that the manifest records."""
    extra = sorted(set(given.found).difference(given.records))
    if extra:
        yield given.error(
            "tensors",
            f"the file has {len(extra)} tensors that replace no input of the target "
            f"{given.target.name!r}: {some(extra)}",
        )


def _types(given: AdapterView) -> Iterator[Finding]:
    """dtype and shape of each input; a recorded -1 is any size."""
    for parameter in given.adapter.parameters:
        record = given.records.get(parameter.name)
        if record is None:
            continue
        if parameter.dtype != spelt(record.dtype):
            yield given.error(
                "dtype",
                f"the tensor is {parameter.dtype}, expected {spelt(record.dtype)}",
                tensor=parameter.name,
            )
        if not _fits(parameter.shape, record.shape):
            yield given.error(
                "shape",
                f"the tensor has the shape {list(parameter.shape)}, expected "
                f"{list(record.shape)}" + (" with any size for -1" if -1 in record.shape else ""),
                tensor=parameter.name,
            )


def _fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return len(shape) == len(expected) and all(
        wanted in (-1, size) for size, wanted in zip(shape, expected, strict=True)
    )


def _use_case(given: AdapterView, use_case: UseCaseRecord) -> Iterator[Finding]:
    """The strengths are those that it was compiled with, and there is something to be strong."""
    alpha = given.view.manifest.alpha_of(given.target)
    acts = any(slot.rank or set(slot.beyond_alpha) - {"prompt"} for slot in use_case.slots)
    replaced = [r for name, r in given.records.items() if name in given.found]
    if acts and all(record.role == _ALPHA for record in replaced):
        yield given.error(
            "tensors",
            "the file replaces no weight, and the use case has adapters: they would do nothing",
            hint=REBUILD,
        )
    if alpha is None or alpha.tensor not in given.records:
        return
    parameter = given.found.get(alpha.tensor)
    if parameter is None:
        yield given.error(
            "alpha",
            "the file lacks the strengths: the use case would be switched off",
            tensor=alpha.tensor,
            hint=REBUILD,
        )
        return
    expected = _strengths(alpha, use_case)
    if parameter.dtype != "float32" or parameter.shape != expected.shape:
        return  # another rule tells of dtype and shape
    found = np.concatenate([np.zeros(0, np.float32), *given.adapter.chunks(parameter)])
    if not np.array_equal(found, expected.reshape(-1)):
        yield given.error(
            "alpha",
            f"the strengths are {found.tolist()}, the use case was compiled with "
            f"{expected.reshape(-1).tolist()}",
            tensor=alpha.tensor,
        )


def _strengths(alpha: AlphaRecord, use_case: UseCaseRecord) -> NDArray[np.float32]:
    """slot: one strength per slot. rank: alpha_i * scale_i on the ranks of slot i."""
    values = np.zeros(alpha.shape, np.float32)
    flat = values.reshape(-1)
    for index, slot in enumerate(use_case.slots):
        if alpha.layout == "slot":
            flat[index : index + 1] = slot.alpha
        else:
            flat[slot.start : slot.start + slot.rank] = slot.alpha * slot.scale
    return values
