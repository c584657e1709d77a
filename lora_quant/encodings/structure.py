"""What may never differ between the use cases of one graph: everything but scale and offset."""

from __future__ import annotations

from dataclasses import dataclass, fields

_LABELS = {
    "kind": "number kind",
    "bits": "bits",
    "symmetric": "symmetry",
    "granularity": "granularity",
    "axis": "channel axis",
    "block_size": "block size",
    "block_axis": "block axis",
    "compressed_bits": "compressed bits",
}
_MAY_BE_UNKNOWN = ("axis", "block_axis")


@dataclass(frozen=True)
class Structure:
    """The fixed part of an encoding; differences are named in the order of the fields."""

    kind: str
    bits: int
    symmetric: bool
    granularity: str
    axis: int | None
    block_size: int | None
    block_axis: int | None
    compressed_bits: int | None

    def first_difference(self, other: Structure) -> str | None:
        """A text such as `bits: 8 and 16`, or None if the two are compatible.

        An axis that one of them does not know (None) is compatible with any.
        """
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if mine == theirs or (field.name in _MAY_BE_UNKNOWN and None in (mine, theirs)):
                continue
            return f"{_LABELS[field.name]}: {_shown(mine)} and {_shown(theirs)}"
        return None


def _shown(value: object) -> str:
    return "none" if value is None else str(value)
