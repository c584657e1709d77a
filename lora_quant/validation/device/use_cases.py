"""What must not differ between the use cases of one graph, looked at one use case at a time.

base    int8 per channel          tone    int8 per channel, other scales     fine
                                  legal   int4 per channel                   structure differs
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.structure import Structure
from lora_quant.errors import some
from lora_quant.findings import Finding
from lora_quant.validation.catalogue.device import STRUCTURE_DIFFERS
from lora_quant.validation.documents.entry_places import Places


@dataclass
class StructuresOfUseCases:
    """Remembers of every tensor the structure that it had first, and in whose file that was.

    complete: whether every file has to have every tensor; files of graphs with branches of their
    own need not.
    """

    complete: bool
    first: dict[str, tuple[str, Structure]] = field(default_factory=dict)
    seen: str | None = None

    def take(
        self, owner: str, encodings: Mapping[str, Encoding], places: Places
    ) -> Iterator[Finding]:
        """Findings of one more file; `owner` is how findings name it."""
        differing: dict[str, list[str]] = {}
        for name, encoding in encodings.items():
            whose, known = self.first.setdefault(name, (owner, encoding.structure))
            difference = known.first_difference(encoding.structure)
            if difference is not None:
                told = f"{difference} in {whose!r} and {owner!r}"
                differing.setdefault(told, []).append(name)
        for told, names in differing.items():
            many = f", for {len(names)} tensors: {some(names)}" if len(names) > 1 else ""
            yield STRUCTURE_DIFFERS.finding(told + many, places(names[0]))
        if self.seen is None:
            self.seen = owner
        elif self.complete:
            yield from self._absent(owner, encodings, places)

    def _absent(self, owner: str, encodings: Collection[str], places: Places) -> Iterator[Finding]:
        lacking = [name for name in self.first if name not in encodings]
        extra = [name for name, (whose, _) in self.first.items() if whose == owner]
        for names, has, has_not in ((lacking, self.seen, owner), (extra, owner, self.seen)):
            if names:
                yield STRUCTURE_DIFFERS.finding(
                    f"{len(names)} tensors have an encoding in {has!r} and none in {has_not!r}: "
                    f"{some(names)}",
                    replace(places(None), tensor=names[0]),
                )
