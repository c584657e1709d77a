"""Weights files; the safetensors library tells what they hold, rather than our own reader.

Values are read by our own: the library has no bfloat16 for numpy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from safetensors import SafetensorError, safe_open

from lora_quant.adapters.files.safetensors_file import SafetensorsFile
from lora_quant.config.manifest_records import PackFile, TensorRecord
from lora_quant.errors import LoraQuantError, some
from lora_quant.findings import Finding
from lora_quant.validation.documents.schema_check import Depth
from lora_quant.validation.files.stored_tensors import stored_values
from lora_quant.validation.pack.view import PackView

_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
}
"""ONNX element type -> name in a safetensors header."""


def check_weights(view: PackView, file: PackFile) -> Iterator[Finding]:
    """Names, shapes and dtypes must be exactly those of the manifest's tensors."""
    expected = {tensor.name: tensor for tensor in view.manifest.tensors}
    try:
        with safe_open(str(view.locate(file.path)), framework="np") as opened:
            found = {name: _header(opened, name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        yield view.error(
            "weights-format",
            f"the file is not readable as safetensors: {error}",
            file.path,
            hint="build the pack again",
            use_case=file.use_case,
        )
        return
    missing = [name for name in expected if name not in found]
    extra = sorted(set(found) - set(expected))
    if missing:
        what = f"lacks {len(missing)} tensors of the manifest: {some(missing)}"
        yield _differs(view, file, "weights-tensors", f"the weights file {what}")
    if extra:
        what = f"has {len(extra)} tensors that it should not: {some(extra)}"
        yield _differs(view, file, "weights-tensors", f"the weights file {what}")
    for name, tensor in expected.items():
        if name in found:
            yield from _compare(view, file, tensor, *found[name])
    if view.depth is Depth.FULL:
        yield from _values(view, file)


def _values(view: PackView, file: PackFile) -> Iterator[Finding]:
    """No NaN and Inf: one of them makes NaN of every sum that it is a part of."""
    try:
        for values in stored_values(SafetensorsFile(view.locate(file.path))):
            if values.not_finite:
                yield view.error(
                    "weights-values",
                    f"{values.not_finite} of the tensor's values are NaN or Inf",
                    file.path,
                    hint="look at the checkpoint that the use case was built from",
                    use_case=file.use_case,
                    tensor=values.name,
                )
    except LoraQuantError as error:
        yield view.error(
            "weights-format", error.message, file.path, hint=error.hint, use_case=file.use_case
        )


def _header(opened: Any, name: str) -> tuple[tuple[int, ...], str]:
    part = opened.get_slice(name)
    return tuple(part.get_shape()), str(part.get_dtype())


def _compare(
    view: PackView, file: PackFile, tensor: TensorRecord, shape: tuple[int, ...], dtype: str
) -> Iterator[Finding]:
    if shape != tensor.shape:
        what = f"the tensor has the shape {list(shape)}, expected {list(tensor.shape)}"
        yield _differs(view, file, "weights-shape", what, tensor.name)
    wanted = _DTYPES.get(tensor.dtype, tensor.dtype)
    if dtype != wanted:
        what = f"the tensor has the dtype {dtype}, expected {wanted} ({tensor.dtype})"
        yield _differs(view, file, "weights-dtype", what, tensor.name)


def _differs(
    view: PackView, file: PackFile, rule: str, what: str, tensor: str | None = None
) -> Finding:
    return view.error(
        rule,
        what,
        file.path,
        hint="weights and manifest come from different builds",
        use_case=file.use_case,
        tensor=tensor,
    )
