"""Running packs: sessions that switch use cases, and verification.

The public names load on first use, so that importing this room costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_quant.runtime.session.choice import BASE
    from lora_quant.runtime.session.session import Session

_HOMES = {"BASE": "session.choice", "Session": "session.session"}

__all__ = ["BASE", "Session"]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'lora_quant.runtime' has no attribute {name!r}")
    return getattr(import_module(f"lora_quant.runtime.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
