"""One adapter file, by itself: what ONNX Runtime refuses, or takes without a word.

Without a pack nobody can tell whether the file fits a graph. What it holds is a note.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lora_quant.config.regular_file import open_regular
from lora_quant.errors import LoraQuantError, Where
from lora_quant.findings import Finding, Severity
from lora_quant.validation.files.adapter_file import AdapterFile, read_adapter_file
from lora_quant.validation.files.adapter_signs import ADAPTER_SUFFIX, MAGIC
from lora_quant.validation.from_errors import finding_of

_SHOWN = 8
_FLOATS = ("float", "bfloat")


@dataclass(frozen=True)
class AdapterProblem:
    """Something wrong with one tensor; `rule` comes behind the area of who asks."""

    rule: str
    message: str
    tensor: str
    hint: str


def is_adapter_file(path: Path) -> bool:
    """Whether a file has the suffix of an adapter, or begins like one."""
    if path.suffix.lower() == ADAPTER_SUFFIX:
        return True
    try:
        with open_regular(path) as file:
            return file.read(8)[4:] == MAGIC
    except OSError:
        return False


def check_adapter(path: Path) -> tuple[Finding, ...]:
    """Findings `adapter/...` for a file on its own; bad content never raises."""
    try:
        adapter = read_adapter_file(path)
        problems = tuple(
            Finding(
                f"adapter/{problem.rule}",
                Severity.ERROR,
                problem.message,
                Where(file=path, tensor=problem.tensor),
                problem.hint,
            )
            for problem in adapter_problems(adapter)
        )
    except LoraQuantError as error:
        return (finding_of(error, shown=path),)
    return (*problems, _content(adapter))


def adapter_problems(adapter: AdapterFile) -> Iterator[AdapterProblem]:
    """Names that occur twice, shapes without axes, NaN and Inf.

    Raises AdapterError if the file becomes shorter meanwhile.
    """
    counts = Counter(parameter.name for parameter in adapter.parameters)
    for name, count in counts.items():
        if count > 1:
            yield AdapterProblem(
                "twice",
                f"the file holds the tensor {count} times",
                name,
                "ONNX Runtime would keep one of them; write the file again",
            )
    for parameter in adapter.parameters:
        if not parameter.shape:
            yield AdapterProblem(
                "no-axes",
                "the tensor has no axes, which ONNX Runtime refuses in an adapter",
                parameter.name,
                "write it with the shape [1]",
            )
        if not parameter.dtype.startswith(_FLOATS):
            continue
        wrong = sum(
            int(np.count_nonzero(~np.isfinite(chunk))) for chunk in adapter.chunks(parameter)
        )
        if wrong:
            yield AdapterProblem(
                "values",
                f"{wrong} of the {parameter.dtype} values are NaN or Inf",
                parameter.name,
                "look at the checkpoint that it was made from",
            )


def _content(adapter: AdapterFile) -> Finding:
    parameters = adapter.parameters
    told = "; ".join(f"{p.name!r} {p.dtype} {list(p.shape)}" for p in parameters[:_SHOWN])
    rest = f"; and {len(parameters) - _SHOWN} more" if len(parameters) > _SHOWN else ""
    size = sum(parameter.size for parameter in parameters)
    return Finding(
        "adapter/content",
        Severity.NOTE,
        f"{len(parameters)} tensors with {size:,} bytes of values, adapter version "
        f"{adapter.adapter_version}, model version {adapter.model_version}"
        + (f": {told}{rest}" if parameters else ""),
        Where(file=adapter.path),
    )
