"""From a tensor's name to the module that it adapts and the part that it plays there.

    base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight
    '--- wrapper ---'------------- module ----------' '-par-' 'name-' 'tail'

PEFT's wrapper prefix occurs once, several times (nested models) or not at all (written by other
libraries); the adapter's name is there when a plain state dict was saved. Whatever is not an
adapter tensor is said to be what it is, so that a rule can refuse it by name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum

_WRAPPER = "base_model.model."
_SHARED = "base_model."
_TAILS = ("weight", "bias")


class Role(Enum):
    """What a tensor is: part of a module's adapter, shared by the model, or a replacement."""

    ADAPTER = "adapter"
    SHARED = "shared"
    REPLACEMENT = "replacement"


@dataclass(frozen=True)
class RoutedKey:
    """One tensor name taken apart.

    `module` is free of the wrapper prefix. For an adapter tensor `suffix` is the parameter and its
    tail (`lora_A.weight`) without the adapter's name, which is in `adapter_name` if there was one.
    For the others `module` is the whole name without the prefix, and `suffix` is empty.
    """

    key: str
    role: Role
    module: str
    suffix: str = ""
    adapter_name: str | None = None


def route_key(key: str, parameters: Collection[str]) -> RoutedKey:
    """Take one name apart. `parameters` are the names of adapter parameters, such as `lora_A`.

    A name may have two parts, and `#` stands for any number: `osf_svd_params.U_low`,
    `peanut_encoders.#`.
    """
    if key.startswith(_SHARED) and not key.startswith(_WRAPPER):
        return RoutedKey(key, Role.SHARED, key.removeprefix(_SHARED))
    path = key
    while path.startswith(_WRAPPER):
        path = path.removeprefix(_WRAPPER)
    parts = path.split(".")
    # from the end, because a module may itself be called like a parameter
    for at in range(len(parts) - 1, 0, -1):
        head = next((n for n in (2, 1) if _numbered(parts[at : at + n]) in parameters), 0)
        if head:
            rest = parts[at + head :]
            tail = rest.pop() if rest and rest[-1] in _TAILS else None
            if len(rest) > 1:
                break
            parameter = ".".join(parts[at : at + head])
            suffix = parameter if tail is None else f"{parameter}.{tail}"
            name = rest[0] if rest else None
            return RoutedKey(key, Role.ADAPTER, ".".join(parts[:at]), suffix, name)
    return RoutedKey(key, Role.REPLACEMENT, path)


def route_keys(keys: Iterable[str], parameters: Collection[str]) -> tuple[RoutedKey, ...]:
    """All names taken apart, in the order given."""
    return tuple(route_key(key, parameters) for key in keys)


def any_number(parameter: str) -> str:
    """A parameter's name with `#` for each of its parts that is a number."""
    return _numbered(parameter.split("."))


def _numbered(parts: Iterable[str]) -> str:
    return ".".join("#" if part.isdecimal() else part for part in parts)
