"""Files of soft prompts: each use case that has one has exactly one, as its record describes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from lora_quant.config.manifest import MANIFEST_FILE
from lora_quant.config.manifest_records import PackFile, TargetRecord
from lora_quant.findings import Finding
from lora_quant.validation.pack.view import PackView

_ROLE = "prompt"
_REBUILD = "build the pack again"


def check_prompt_files(view: PackView, target: TargetRecord) -> Iterator[Finding]:
    """One file for each use case with a soft prompt, none for the others."""
    owners = Counter(f.use_case for f in target.files if f.role == _ROLE)
    for use_case in view.manifest.use_cases:
        expected = int(use_case.prompt is not None)
        if owners[use_case.name] != expected:
            yield view.error(
                "prompt-files",
                f"the use case has {owners[use_case.name]} files of the role {_ROLE!r} for "
                f"the target {target.name!r}, expected {expected}",
                MANIFEST_FILE,
                hint=_REBUILD,
                use_case=use_case.name,
            )
    for file in view.files(target, _ROLE):
        yield from _check(view, file)


def _check(view: PackView, file: PackFile) -> Iterator[Finding]:
    """One tensor of the recorded form and shape, float32, without NaN and Inf."""
    record = next((u.prompt for u in view.manifest.use_cases if u.name == file.use_case), None)
    if record is None:
        return
    try:
        tensors = load_file(view.locate(file.path))
    except (SafetensorError, OSError, ValueError) as error:
        yield view.error(
            "prompt-format",
            f"the file is not readable as safetensors: {error}",
            file.path,
            hint=_REBUILD,
            use_case=file.use_case,
        )
        return
    found = {name: (values.shape, str(values.dtype)) for name, values in tensors.items()}
    if found != {record.form: (record.shape, "float32")}:
        told = ", ".join(
            f"{name!r} {dtype} {list(shape)}" for name, (shape, dtype) in found.items()
        )
        yield view.error(
            "prompt-tensor",
            f"the file has {told or 'no tensor'}, expected {record.form!r} float32 "
            f"{list(record.shape)} alone",
            file.path,
            hint="prompt and manifest come from different builds",
            use_case=file.use_case,
        )
        return
    wrong = int(np.count_nonzero(~np.isfinite(tensors[record.form])))
    if wrong:
        yield view.error(
            "prompt-values",
            f"{wrong} of the prompt's values are NaN or Inf",
            file.path,
            hint=_REBUILD,
            use_case=file.use_case,
            tensor=record.form,
        )
