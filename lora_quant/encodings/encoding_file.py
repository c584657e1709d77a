"""The content of one encodings file, whatever its dialect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lora_quant.encodings.encoding import Encoding
from lora_quant.findings import Finding


@dataclass(frozen=True, eq=False)
class EncodingFile:
    """Encodings by tensor name, in the order of the file.

    params: names of the entries that the dialect lists as parameters; None where it does not tell
    (2.0.0 and fragments). header: the other members of the document (producer, quantizer_args,
    ...) as JSON values, carried from input to output. findings: what the reader noticed.
    """

    version: str | None
    encodings: Mapping[str, Encoding]
    params: frozenset[str] | None = None
    header: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    @property
    def activation_names(self) -> tuple[str, ...]:
        """Names outside `params`, in order; all names where the dialect does not tell."""
        return tuple(name for name in self.encodings if name not in (self.params or ()))

    @property
    def param_names(self) -> tuple[str, ...]:
        """Names in `params`, in the order of the file."""
        return tuple(name for name in self.encodings if name in (self.params or ()))

    def updated(
        self, changes: Mapping[str, Encoding], *, params: Iterable[str] = ()
    ) -> EncodingFile:
        """The same file with some encodings replaced or added.

        Known names keep their place and their section, new ones follow in the given order. Of the
        new ones, `params` names the parameters.
        """
        added = frozenset(params).intersection(changes).difference(self.encodings)
        return replace(
            self,
            encodings={**self.encodings, **changes},
            params=None if self.params is None else self.params | added,
        )

    def without(self, names: Iterable[str]) -> EncodingFile:
        """The same file without some entries."""
        gone = frozenset(names)
        return replace(
            self,
            encodings={n: e for n, e in self.encodings.items() if n not in gone},
            params=None if self.params is None else self.params - gone,
        )

    def same_content(self, other: EncodingFile) -> bool:
        """Whether version, sections, header, names, their order and all grids are equal."""
        return (
            self.version == other.version
            and self.params == other.params
            and self.header == other.header
            and list(self.encodings) == list(other.encodings)
            and all(e.same_grid(other.encodings[n]) for n, e in self.encodings.items())
        )
