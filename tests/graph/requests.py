"""Requests that know more, or less, than the factors of a linear layer."""

from __future__ import annotations

from typing import Any

from lora_quant.graph.attach.resolver import ModuleRequest
from tests.graph.helpers import ADAPTER


def asked(
    module: str,
    in_features: int | None = None,
    out_features: int | None = None,
    kernel: tuple[int, ...] | None = (),
    *,
    adapter: str = ADAPTER,
    **more: Any,
) -> ModuleRequest:
    """A request that tells only what is given; `more` are the fields with defaults."""
    return ModuleRequest(module, in_features, out_features, kernel, adapter, **more)
