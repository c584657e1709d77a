"""trainable_token_indices: rows of an embedding (or output layer) that the adapter brings anew.

    model.embed_tokens.token_adapter.trainable_tokens_delta   [k, dim]

holds the new rows themselves, whatever its name says, in the order of the indices. Where the base
ties other tables to this one, PEFT replaces the rows there too, and the file has them once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from lora_quant.adapters.description import ParameterShape
from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.files.tensor_source import TensorSource
from lora_quant.adapters.frame.replaced_parameters import parameter_shape
from lora_quant.adapters.frame.tied_rows import ties_notice
from lora_quant.errors import AdapterError, Where
from lora_quant.findings import Finding, Severity

FIELD = "trainable_token_indices"
_MARK = ".token_adapter.trainable_tokens_delta"


def token_rows(
    others: Mapping[str, str], config: PeftConfig, source: TensorSource
) -> dict[str, ParameterShape]:
    """Parameter -> its new rows; AdapterError if tensors and indices do not agree."""
    found = {name.partition(_MARK)[0]: tensor for name, tensor in others.items() if _MARK in name}
    indices = _indices(config)
    shapes = {}
    for module, tensor in found.items():
        where = Where(file=source.path, module=module, tensor=tensor)
        lists = {indices[key] for key in indices if module.endswith(key)}
        if len(lists) != 1:
            raise AdapterError(
                f"{len(lists) or 'no'} lists of {FIELD} are for module {module!r}, expected one",
                where=replace(config.where(FIELD), module=module),
                hint="name the embedding with its indices, as the training did",
            )
        (rows,) = lists
        shape = parameter_shape(f"{module}.weight", tensor, source)
        if len(shape.shape) != 2 or shape.shape[0] != len(rows):
            raise AdapterError(
                f"the tensor has shape {list(shape.shape)}, expected two axes and a row for each "
                f"of {len(rows)} token indices",
                where=where,
                hint=f"correct {FIELD} so that it agrees with the weights",
            )
        shapes[shape.parameter] = replace(shape, rows=rows, with_ties=len(found) == 1)
    return shapes


def without_rows(others: Mapping[str, str]) -> dict[str, str]:
    """The replaced parameters that are no rows."""
    return {name: tensor for name, tensor in others.items() if _MARK not in name}


def row_notices(config: PeftConfig, tensors: Collection[str]) -> tuple[Finding, ...]:
    """What to know of replaced rows: ties, and indices without tensors."""
    found = {name.partition(_MARK)[0] for name in tensors if _MARK in name}
    findings = [
        Finding(
            rule="adapter/target-without-tensors",
            severity=Severity.WARNING,
            message=f"the indices {_named(entry)}of {FIELD} have no tensor in the checkpoint",
            where=config.where(FIELD),
            hint="check that the checkpoint is complete; of tables that are tied, PEFT saves the "
            "rows once",
        )
        for entry in _indices(config)
        if not any(module.endswith(entry) for module in found)
    ]
    if len(found) == 1:
        (module,) = found
        findings.append(ties_notice(module.removeprefix("base_model.model."), config.where(FIELD)))
    return tuple(findings)


def _named(entry: str) -> str:
    return f"for {entry!r} " if entry else ""


def _indices(config: PeftConfig) -> dict[str, tuple[int, ...]]:
    """End of a module's name -> token indices; the empty one is for the input embedding."""
    if config.is_neutral(FIELD):
        return {}
    value: Any = config.fields[FIELD]
    lists = value if isinstance(value, dict) else {"": value}
    for name, rows in lists.items():
        if (
            not isinstance(rows, list)
            or not rows
            or not all(type(row) is int and row >= 0 for row in rows)
            or len(set(rows)) != len(rows)
        ):
            raise AdapterError(
                f"the indices {_named(name)}of {FIELD} are not a list of different whole numbers "
                "from 0",
                where=config.where(FIELD),
                hint="save the adapter again with PEFT, or correct the field",
            )
    return {name: tuple(rows) for name, rows in lists.items()}
