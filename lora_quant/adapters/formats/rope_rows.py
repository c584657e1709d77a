"""Query and key rows of Llama-like models, which two libraries store in another order.

    transformers    head h: x0 x1 ... | y0 y1 ...      halves, rotated as (xi, yi)
    llama.cpp       head h: x0 y0 x1 y1 ...            pairs side by side
    torchtune       the same as llama.cpp

The rows of B follow the rows of the weight, so they are brought back to the order of transformers.
That needs the number of heads, which the `config.json` of the base model tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_quant.config.documents import read_json
from lora_quant.errors import AdapterError, UnsupportedAdapterError, Where

MODEL_CONFIG = "config.json"
_MAX_BYTES = 16 * 1024 * 1024
Rows = np.ndarray[tuple[int], np.dtype[np.intp]]


@dataclass(frozen=True)
class Heads:
    """Number of heads of the queries, and of the keys."""

    query: int
    key: int

    def of(self, module: str) -> int | None:
        """The heads of a module `...q_proj` or `...k_proj`; None for others."""
        return {"q_proj": self.query, "k_proj": self.key}.get(module.rpartition(".")[2])


def is_rotated(module: str) -> bool:
    """Whether the rows of this module (by its transformers name) have two orders."""
    return module.rpartition(".")[2] in ("q_proj", "k_proj")


def halves_from_pairs(out_features: int, heads: int, where: Where) -> Rows:
    """Row i of the transformers order is row `result[i]` of the file.

    Raises AdapterError unless every head has the same even number of rows.
    """
    if out_features % (2 * heads):
        raise AdapterError(
            f"the tensor has {out_features} rows, expected {heads} heads of an even number of rows",
            where=where,
            hint=f"{MODEL_CONFIG} is not the one of the base model that was adapted",
        )
    order = np.arange(out_features).reshape(heads, out_features // heads // 2, 2)
    return order.swapaxes(1, 2).reshape(-1)


def read_model_config(folder: Path) -> tuple[Path, Mapping[str, Any]] | None:
    """The base model's own description beside an adapter; None if there is none."""
    file = folder / MODEL_CONFIG
    if not file.is_file():
        return None
    document = read_json(file, max_bytes=_MAX_BYTES)
    if not isinstance(document, dict):
        raise AdapterError(
            f"the file holds a {type(document).__name__}, expected an object",
            where=Where(file=file),
            hint=f"copy the base model's {MODEL_CONFIG} there, or remove it",
        )
    return file, document


def heads_from(file: Path, document: Mapping[str, Any]) -> Heads:
    """`num_attention_heads` and `num_key_value_heads`, which is the former if it is absent."""
    query = _positive(file, document, "num_attention_heads", None)
    return Heads(query, _positive(file, document, "num_key_value_heads", query))


def unknown_heads(where: Where, order: str) -> UnsupportedAdapterError:
    """The error for rows whose order cannot be undone."""
    return UnsupportedAdapterError(
        f"the rows of this module are in the order of {order}, and the number of heads, which is "
        "needed to bring them back, is not known",
        where=where,
        hint=f"copy the base model's {MODEL_CONFIG} beside the adapter",
    )


def _positive(file: Path, document: Mapping[str, Any], field: str, default: int | None) -> int:
    value = document.get(field)
    value = default if value is None else value
    if type(value) is not int or value < 1:
        raise AdapterError(
            f"{field} is {value!r}, expected a whole number of at least 1",
            where=Where(file=file, field=field),
            hint=f"copy the base model's {MODEL_CONFIG} there",
        )
    return value
