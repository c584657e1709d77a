"""All tensors of a checkpoint by what they are for: a module's, shared, or a replaced parameter."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from lora_quant.adapters.files.tensor_source import TensorSource
from lora_quant.adapters.frame.routing import Role, RoutedKey, any_number, route_keys
from lora_quant.errors import AdapterError, UnsupportedAdapterError, Where


@dataclass(frozen=True)
class KeyTable:
    """`modules`: module -> parameter -> tensor, sorted by module; `shared`: name -> tensor.

    `others`: parameter path of the base -> tensor, for everything that is no adapter tensor.
    """

    modules: Mapping[str, Mapping[str, str]]
    shared: Mapping[str, str]
    others: Mapping[str, str]


def read_keys(
    source: TensorSource, parameters: Collection[str], shared: Collection[str] = ()
) -> KeyTable:
    """Sort the tensors of `source`.

    `parameters` are the full parameter names of a kind (`lora_A.weight`, `hada_w1_a`), with `#` for
    any number (`peanut_encoders.#.weight`), `shared` the names of tensors of the whole model (for
    numbered ones, the part before the number). Raises
    AdapterError for two tensors of one place and two adapters in one file, UnsupportedAdapterError
    for a parameter that the kind does not have.
    """
    heads = {parameter.removesuffix(".weight").removesuffix(".bias") for parameter in parameters}
    modules: dict[str, dict[str, str]] = {}
    found_shared: dict[str, str] = {}
    others: dict[str, str] = {}
    adapters: dict[str | None, str] = {}
    for key in route_keys(source.names, heads):
        if key.role is Role.ADAPTER:
            if any_number(key.suffix) not in parameters:
                raise _unknown_parameter(key, source, parameters)
            adapters.setdefault(key.adapter_name, key.key)
            place = modules.setdefault(key.module, {})
            _put(place, key.suffix, key, source)
        elif key.module in shared or key.module.partition(".")[0] in shared:
            _put(found_shared, key.module, key, source)
        else:
            _put(others, _parameter_path(key), key, source)
    if len(adapters) > 1:
        (first, one), (second, two), *_ = adapters.items()
        raise AdapterError(
            f"the file holds tensors of {len(adapters)} adapters: {one!r} is of {_named(first)}, "
            f"{two!r} of {_named(second)}",
            where=Where(file=source.path),
            hint="save one adapter a file with PEFT's save_pretrained",
        )
    return KeyTable({name: modules[name] for name in sorted(modules)}, found_shared, others)


def _named(adapter: str | None) -> str:
    return repr(adapter) if adapter else "one without a name"


def _put(place: dict[str, str], name: str, key: RoutedKey, source: TensorSource) -> None:
    other = place.setdefault(name, key.key)
    if other != key.key:
        raise AdapterError(
            f"two tensors are {name} of one module: {other!r} and {key.key!r}",
            where=Where(file=source.path, module=key.module, tensor=key.key),
            hint="save one adapter a file, with one prefix",
        )


def _parameter_path(key: RoutedKey) -> str:
    """The base's own name of a parameter: PEFT's wrapper levels are not part of it."""
    parts = key.module.split(".")
    if "modules_to_save" in parts:
        at = parts.index("modules_to_save")
        parts[at:-1] = []
    return ".".join(part for part in parts if part != "base_layer")


def _unknown_parameter(
    key: RoutedKey, source: TensorSource, parameters: Collection[str]
) -> UnsupportedAdapterError:
    return UnsupportedAdapterError(
        f"the tensor's name ends in {key.suffix}, expected one of {', '.join(sorted(parameters))}",
        where=Where(file=source.path, module=key.module, tensor=key.key),
        hint="it was written by another version of the training library, or is of another kind",
    )
