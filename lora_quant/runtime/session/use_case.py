"""Loading the adapter file of a use case, and what the engines do not check about it.

The engines take an adapter of another graph, keep the default of a tensor that a file lacks, and
see only in the middle of a run that two ranks do not meet. So names, dtypes, shapes, ranks, grids,
strengths and the fingerprint of the graph are compared here, before any of them sees a value.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_quant.config.manifest_records import OverridableRecord, TargetRecord, UseCaseRecord
from lora_quant.engines.adapter_file import AdapterFile, read_adapter
from lora_quant.engines.onnxruntime import Array, GraphValue, LoadedGraph, spelt
from lora_quant.errors import VerificationError, Where, some
from lora_quant.runtime.feeds.prompts import read_prompt
from lora_quant.runtime.session.graph import fits, told
from lora_quant.runtime.session.pack_files import REBUILD, SessionPack
from lora_quant.runtime.session.strengths import strength_values
from lora_quant.validation.files.adapter_file import read_adapter_file
from lora_quant.validation.pack.overridable import owner_of


@dataclass(frozen=True, eq=False)
class LoadedUseCase:
    """A use case whose files are read and checked.

    `values` replace the defaults of the graph; `file` keeps them alive.
    """

    record: UseCaseRecord
    values: Mapping[str, Any]
    file: AdapterFile | None
    prompt: Array | None


def load_use_case(pack: SessionPack, name: str, graph: LoadedGraph) -> LoadedUseCase:
    """Read the files of one use case.

    Raises ConfigError if there is no such use case, and VerificationError, AdapterError or
    InputMissingError if its files do not fit the manifest and the graph.
    """
    record = pack.use_case(name)
    path = pack.find("adapter", name) if pack.manifest.merged else pack.require("adapter", name)
    file = None
    if path is not None:
        _check_names(path, pack.target, name)
        file = read_adapter(path)
        _check_parameters(file, pack.target, graph, name)
        _check_strengths(file, pack, record)
    prompt = None
    if record.prompt is not None:
        prompt = read_prompt(pack.require("prompt", name), record.prompt)
    return LoadedUseCase(record, {} if file is None else file.values, file, prompt)


def _check_names(path: Path, target: TargetRecord, use_case: str) -> None:
    """What the engine hides: a name that occurs twice, and the graph that the file is for."""
    content = read_adapter_file(path)
    where = Where(file=path, use_case=use_case)
    if target.fingerprint is None or content.model_version != target.fingerprint:
        raise VerificationError(
            f"the adapter file was made for another graph or base: got the fingerprint "
            f"{content.model_version}, expected {target.fingerprint}",
            where=where,
            hint=REBUILD,
        )
    counts = Counter(parameter.name for parameter in content.parameters)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise VerificationError(
            f"the adapter file holds tensors twice: {some(twice)}", where=where, hint=REBUILD
        )


def _check_parameters(
    file: AdapterFile, target: TargetRecord, graph: LoadedGraph, use_case: str
) -> None:
    records = {record.name: record for record in target.inputs}
    declared = {value.name: value for value in graph.defaults}
    found = {parameter.name: parameter for parameter in file.parameters()}
    where = Where(file=file.path, use_case=use_case)
    unknown = [name for name in found if name not in records]
    if unknown:
        raise VerificationError(
            f"the adapter file has tensors that the graph does not take: {some(unknown)}",
            where=where,
            hint=REBUILD,
        )
    for name, parameter in found.items():
        record = records[name]
        if not fits(record, parameter):
            raise VerificationError(
                f"the tensor {name!r} is {told(parameter.dtype, parameter.shape)}, expected "
                f"{told(spelt(record.dtype), record.shape)}",
                where=Where(file=file.path, use_case=use_case, tensor=name),
                hint=REBUILD,
            )
    _check_grids(found, records.values(), where)
    _check_ranks(found, declared.values(), where)


def _check_strengths(file: AdapterFile, pack: SessionPack, record: UseCaseRecord) -> None:
    """They are those of the manifest; with the defaults, or another's, it is another use case."""
    alpha = pack.alpha
    if alpha is None or all(one.name != alpha.tensor for one in pack.target.inputs):
        return
    compiled = {slot.adapter: slot.alpha for slot in record.slots}
    expected = strength_values(alpha, record, compiled)
    given = file.values.get(alpha.tensor)
    got = None if given is None else given.numpy()
    if got is None or not np.array_equal(got, expected):
        raise VerificationError(
            "the strengths in the adapter file are "
            f"{'missing' if got is None else got.tolist()}, the use case was compiled with "
            f"{expected.tolist()}",
            where=Where(file=file.path, use_case=record.name, tensor=alpha.tensor),
            hint=REBUILD,
        )


def _check_grids(
    found: Mapping[str, GraphValue], records: Iterable[OverridableRecord], where: Where
) -> None:
    """Codes, scales and zero points of a tensor are in the file together, or none of them is."""
    parts: dict[str, list[str]] = defaultdict(list)
    for record in records:
        parts[owner_of(record)].append(record.name)
    for tensor, names in parts.items():
        missing = [name for name in names if name not in found]
        if missing and len(missing) < len(names):
            raise VerificationError(
                f"the adapter file has a part of what {tensor!r} is quantized with, and lacks "
                f"{some(missing)}",
                where=where,
                hint=REBUILD,
            )


def _check_ranks(
    found: Mapping[str, GraphValue], declared: Iterable[GraphValue], where: Where
) -> None:
    """Axes of one name have one size, and a file fills all of those that share it or none."""
    sizes: dict[str, dict[int | None, str]] = {}
    for value in declared:
        parameter = found.get(value.name)
        for axis, symbol in enumerate(value.shape):
            if isinstance(symbol, str) and symbol:
                size = None if parameter is None else parameter.shape[axis]
                known = size if isinstance(size, int) else None
                sizes.setdefault(symbol, {}).setdefault(known, value.name)
    for symbol, by_size in sizes.items():
        if len(by_size) > 1:
            both = ", ".join(
                f"{name!r} {'is not in the file' if size is None else f'has {size}'}"
                for size, name in by_size.items()
            )
            raise VerificationError(
                f"the tensors of a use case do not agree on the size {symbol!r}: {both}",
                where=where,
                hint=REBUILD,
            )
