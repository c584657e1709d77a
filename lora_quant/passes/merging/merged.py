"""Complete encodings of the final graph, for the base and for each use case.

A tensor in the quant-updatable set takes the use case's encoding, every other takes the base's. A
branch that a use case leaves idle keeps the base's encodings: its weights are zero. So does the
weight of an idle vector; what it gives has the grid of what it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from lora_quant.config.lora_config import UseCaseInputConfig
from lora_quant.encodings import aimet_1_0_0
from lora_quant.encodings.convert import WRITABLE, convert
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.encodings.products import in_structure
from lora_quant.errors import EncodingsError, Where
from lora_quant.findings import Finding, Severity
from lora_quant.passes.merging.collected import UseCaseEncodings
from lora_quant.passes.merging.use_case_encodings import EncodingsReader
from lora_quant.passes.merging.weight_ranges import WeightRanges
from lora_quant.passes.updatable import UpdatableTensors


@dataclass(frozen=True, eq=False)
class MergedEncodings:
    """`base` covers every tensor with an encoding; use cases are merged when they are written."""

    base: EncodingFile
    reader: EncodingsReader
    updatable: UpdatableTensors

    def for_use_case(
        self, name: str, ranges: WeightRanges
    ) -> tuple[EncodingFile, tuple[Finding, ...]]:
        """The complete encodings of one use case, in the names and the version of `base`."""
        use_case = next(u for u in self.reader.compilation.config.use_cases if u.name == name)
        found = self.reader.read(use_case, ranges)
        changes = {t: e for t, e in found.encodings.items() if t in self.updatable}
        check_structure(use_case, self.base.encodings, changes)
        for tensor, encoding in found.neutral.items():
            if tensor in self.updatable:
                known = self.base.encodings[tensor]
                changes[tensor] = in_structure(encoding, known)
        params = frozenset(t for t in changes if t in self.updatable.values)
        if self.base.version in WRITABLE:
            changed = EncodingFile(aimet_1_0_0.VERSION, changes, params)
            changes = dict(convert(changed, self.base.version).encodings)
        merged = self.base.updated(changes, params=params)
        return merged, tuple(_clipped(use_case, merged, found, ranges))


def check_structure(
    use_case: UseCaseInputConfig, base: Mapping[str, Encoding], changes: Mapping[str, Encoding]
) -> None:
    """Raise EncodingsError if a use case changes more of a tensor than scale and offset."""
    for tensor, encoding in changes.items():
        known = base.get(tensor)
        if known is None:
            continue
        difference = known.structure.first_difference(encoding.structure)
        if difference is not None:
            raise EncodingsError(
                f"the encoding differs from the base's in more than scale and offset: {difference}",
                where=Where(file=use_case.encodings, use_case=use_case.name, tensor=tensor),
                hint="calibrate all use cases with the same quantizer settings",
            )


def _clipped(
    use_case: UseCaseInputConfig,
    merged: EncodingFile,
    found: UseCaseEncodings,
    ranges: WeightRanges,
) -> Iterator[Finding]:
    """Given weight encodings whose grid ends before the values do, by more than half a step."""
    for tensor in sorted(found.given & set(ranges.low)):
        encoding = merged.encodings[tensor]
        if encoding.channels not in (None, ranges.low[tensor].size) or encoding.block_size:
            continue
        half = encoding.step_scale / 2
        below = (encoding.minimum - half) - ranges.low[tensor]
        above = ranges.high[tensor] - (encoding.maximum + half)
        beyond = np.maximum(below, above)
        if (beyond > 0).any():
            channel = int(beyond.argmax())
            side = ranges.low if below[channel] > above[channel] else ranges.high
            value = side[tensor][channel]
            low, high = (
                np.broadcast_to(end, beyond.shape)[channel]
                for end in (encoding.minimum, encoding.maximum)
            )
            yield Finding(
                rule="encodings/weight-clips",
                severity=Severity.WARNING,
                message=f"the given encoding ends before the values do: in channel {channel}, "
                f"values reach {value:.4g} and the grid goes from {low:.4g} to {high:.4g}",
                where=Where(file=use_case.encodings, use_case=use_case.name, tensor=tensor),
                hint="the encodings were made for other values, for example with the strength "
                "folded into lora_A; leave the tensor out of the file to have it computed",
            )
