"""The one door for targets, passes and lowering rules: entry points, the built-in ones included.

Loaded on first use. A plugin is checked when it is loaded: a class whose name attribute equals its
entry point's name and that has the methods of its contract. Two packages that claim one name are
an error that names both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from lora_quant.errors import PluginError, did_you_mean


@dataclass(frozen=True)
class Door:
    """One kind of extension: its entry point group and what a class must have to enter."""

    group: str
    what: str
    name_attribute: str
    methods: tuple[str, ...]
    attributes: tuple[str, ...] = ()


TARGETS = Door("lora_quant.targets", "target", "name", ("emit",))
PASSES = Door("lora_quant.passes", "pass", "name", ("run",), ("requires", "ensures"))
LOWERING_RULES = Door(
    "lora_quant.lowering_rules", "lowering rule", "kind", ("describe", "default_scale", "lower")
)


@cache
def registered(door: Door) -> Mapping[str, EntryPoint]:
    """Entry points of a door by name, nothing loaded yet."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=door.group):
        other = found.get(entry.name)
        if other is not None and other.value != entry.value:
            raise PluginError(
                f"two packages register the {door.what} {entry.name!r}: "
                f"{_owner(other)} and {_owner(entry)}",
                hint="uninstall one of them, or rename its entry point",
            )
        found[entry.name] = entry
    if not found:
        raise PluginError(
            f"no {door.what} is registered, not even a built-in one",
            hint="lora_quant runs from an installed package: `pip install -e .` in a checkout",
        )
    return found


@cache
def load(door: Door, name: str) -> type[Any]:
    """The checked class behind a name; PluginError for an unknown name or a broken plugin."""
    entries = registered(door)
    entry = entries.get(name)
    if entry is None:
        raise PluginError(
            f"there is no {door.what} named {name!r}", hint=did_you_mean(name, entries)
        )
    try:
        loaded = entry.load()
    except Exception as error:  # a plugin may fail in any way while it is imported
        raise PluginError(
            f"the {door.what} {name!r} of {_owner(entry)} cannot be loaded: "
            f"{type(error).__name__}: {error}",
            hint="repair or uninstall that package",
        ) from error
    _check(door, entry, loaded)
    result: type[Any] = loaded
    return result


def make(door: Door, name: str) -> Any:
    """An instance with default options of the class behind a name; errors as for `load`."""
    made = load(door, name)
    try:
        return made()
    except Exception as error:  # as above
        raise PluginError(
            f"the {door.what} {name!r} of {_owner(registered(door)[name])} cannot be made: "
            f"{type(error).__name__}: {error}",
            hint="every option of a plugin needs a default",
        ) from error


class Instances(Mapping[str, Any]):
    """An instance of every registered class of a door by name, made when it is asked for.

    So a plugin that nothing needs costs no time, and cannot fail a build.
    """

    def __init__(self, door: Door) -> None:
        self._door = door
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            if name not in registered(self._door):
                raise KeyError(name)
            self._made[name] = make(self._door, name)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(registered(self._door))

    def __len__(self) -> int:
        return len(registered(self._door))


def _check(door: Door, entry: EntryPoint, loaded: object) -> None:
    owner = f"the {door.what} {entry.name!r} of {_owner(entry)}"
    if not isinstance(loaded, type):
        raise PluginError(f"{owner} is {type(loaded).__name__} {loaded!r}, expected a class")
    name = getattr(loaded, door.name_attribute, None)
    if name != entry.name:
        raise PluginError(
            f"{owner} has {door.name_attribute} = {name!r}, expected {entry.name!r}",
            hint="the entry point's name and the class attribute must be the same",
        )
    missing = [m for m in door.methods if not callable(getattr(loaded, m, None))]
    if missing:
        raise PluginError(
            f"{owner} lacks the method {' and '.join(missing)}; expected {', '.join(door.methods)}"
        )
    absent = [a for a in door.attributes if not hasattr(loaded, a)]
    if absent:
        raise PluginError(
            f"{owner} lacks {' and '.join(absent)}; expected {', '.join(door.attributes)} as class "
            "attributes"
        )


def _owner(entry: EntryPoint) -> str:
    distribution = entry.dist
    if distribution is None:
        return entry.value
    return f"{distribution.name} {distribution.version} ({entry.value})"
