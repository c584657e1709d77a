"""What a mode keeps fixed is fixed: in the lists of updatable tensors, and in the encodings.

list of a use case      names nothing that the mode of the manifest fixes; the same in all use cases
quant_overrides         every tensor that is not in the list has the encoding of base_encodings.json

The encodings of the base and those of one use case are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from lora_quant.config.manifest_records import PackFile, TargetRecord
from lora_quant.encodings.encoding import Encoding
from lora_quant.errors import Where, some
from lora_quant.findings import Finding
from lora_quant.validation.catalogue.pack_contents import (
    FIXED_TENSOR,
    UPDATABLE_DIFFERS,
    UPDATABLE_MODE,
)
from lora_quant.validation.documents.entry_places import Places
from lora_quant.validation.linked.graph_of import facts_if_readable
from lora_quant.validation.pack.view import PackView

Encodings = Mapping[str, Encoding]


@dataclass
class FixedTensors:
    """Takes the use cases of one target, one after the other; `base` is set before the first.

    first: the use case that came first, and its list.
    """

    view: PackView
    target: TargetRecord
    base: Encodings | None = None
    first: tuple[str, frozenset[str]] | None = field(default=None, init=False)

    def take(
        self, file: PackFile, names: Sequence[str], encoded: tuple[Encodings, Places] | None
    ) -> Iterator[Finding]:
        """Findings of one use case. names: its list, from `file`; encoded: its quant_overrides."""
        listed = frozenset(names)
        yield from self._mode(file, names)
        yield from self._like_first(file, listed, None if encoded is None else encoded[0])
        if encoded is not None and self.base is not None:
            yield from self._fixed(file, listed, self.base, *encoded)

    def _mode(self, file: PackFile, names: Sequence[str]) -> Iterator[Finding]:
        mode = self.view.manifest.mode
        wrong = [name for name in names if mode == "none" or name in self._never(mode)]
        if not wrong:
            return
        message = (
            f"{len(wrong)} of {len(names)} tensors of the list are fixed in mode {mode}: "
            f"{some(wrong)}"
        )
        line = names.index(wrong[0]) + 1
        where = Where(self.view.show(file.path), line, use_case=file.use_case, tensor=wrong[0])
        yield UPDATABLE_MODE.finding(message, where)

    def _never(self, mode: str) -> frozenset[str]:
        return self._base_weights | (self._around if mode == "adapter_only" else frozenset())

    @cached_property
    def _base_weights(self) -> frozenset[str]:
        """Initializers that no use case replaces, and the inputs for strengths."""
        manifest = self.view.manifest
        switched = {tensor.name for tensor in manifest.tensors}
        alpha = manifest.alpha_of(self.target)
        found = set() if alpha is None else {alpha.tensor}
        for file in self.view.files(self.target, "graph"):
            facts = facts_if_readable(self.view.locate(file.path))
            if facts is not None:
                found |= {name for name, fact in facts.tensors.items() if fact.is_param}
        return frozenset(found - switched)

    @cached_property
    def _around(self) -> frozenset[str]:
        """What branches read and give to the base: x, h and y, unless a part of a branch too."""
        outer: set[str] = set()
        inner: set[str] = set()
        for point in self.view.manifest.attach_points:
            inner.update(vector.output for vector in point.vectors)
            branch = point.tensors
            if branch is not None:
                outer.update((branch.x, branch.h, branch.y))
                inner.update((branch.a, branch.m, branch.l), branch.relayouts)
        return frozenset(outer - inner)

    def _like_first(
        self, file: PackFile, listed: frozenset[str], encoded: Encodings | None
    ) -> Iterator[Finding]:
        """A tensor without an encoding may be missing from a list; that is said elsewhere."""
        name = file.use_case or ""
        if self.first is None:
            self.first = name, listed
            return
        other, expected = self.first
        missing = expected - listed if encoded is None else (expected - listed) & encoded.keys()
        for tensors, what in (
            (missing, f"lacks tensors that the list of {other!r} has"),
            (listed - expected, f"has tensors that the list of {other!r} lacks"),
        ):
            if tensors:
                found = sorted(tensors)
                where = Where(self.view.show(file.path), use_case=name, tensor=found[0])
                yield UPDATABLE_DIFFERS.finding(f"the list {what}: {some(found)}", where)

    def _fixed(
        self,
        file: PackFile,
        listed: frozenset[str],
        base: Encodings,
        encodings: Encodings,
        places: Places,
    ) -> Iterator[Finding]:
        wrong = [
            name
            for name, encoding in encodings.items()
            if name not in listed and name in base and not base[name].same_grid(encoding)
        ]
        if wrong:
            yield FIXED_TENSOR.finding(
                f"{len(wrong)} encodings of use case {file.use_case!r} differ from the base's, and "
                f"their tensors are not in its list: {some(wrong)}",
                replace(places(wrong[0]), use_case=file.use_case),
            )
