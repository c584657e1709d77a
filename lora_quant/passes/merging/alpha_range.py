"""The grid of the alpha input, which no mode lets change, and strengths that it cannot hold."""

from __future__ import annotations

from collections.abc import Iterator

from lora_quant.config.lora_config import UseCaseInputConfig
from lora_quant.encodings.calibrate import from_range
from lora_quant.encodings.encoding import Encoding
from lora_quant.errors import Where
from lora_quant.findings import Finding, Severity
from lora_quant.passes.compilation import Compilation


def alpha_encoding(compilation: Compilation, given: Encoding | None) -> Encoding:
    """The fixed grid of the alpha input: as given, or from 0 to 1 and over all strengths.

    In the rank layout the input is s, whose range is that of strength times scale.
    """
    if given is not None:
        return given
    ends = [0.0, 1.0]
    for slots in compilation.having("slots").use_cases.values():
        for slot in slots:
            is_rank = compilation.options.alpha_layout == "rank"
            factor = slot.scale if is_rank else 1.0
            ends += [factor, slot.alpha * factor]
    bits = compilation.options.activation_bits
    return from_range(min(ends), max(ends), bits=bits, symmetric=False)


def other_alpha(
    use_case: UseCaseInputConfig, given: Encoding | None, used: Encoding
) -> Iterator[Finding]:
    """A use case's own grid of the alpha input, where it is not the one of the whole graph."""
    if given is not None and not given.same_grid(used):
        yield Finding(
            rule="encodings/alpha-differs",
            severity=Severity.WARNING,
            message=f"the use case's encoding of the alpha input goes from {given.minimum.min():g} "
            f"to {given.maximum.max():g}; the input is fixed, and {float(used.minimum):g} to "
            f"{float(used.maximum):g} was kept",
            where=Where(file=use_case.encodings, use_case=use_case.name),
            hint="put the encoding of the alpha input into the base's file",
        )


def alpha_findings(compilation: Compilation, alpha: Encoding) -> Iterator[Finding]:
    """Strengths that the alpha input's grid cannot hold: they clip on the device."""
    if compilation.options.alpha_layout == "rank":
        return
    low, high = float(alpha.minimum), float(alpha.maximum)
    slack = (high - low) / alpha.steps
    for name, slots in compilation.having("slots").use_cases.items():
        for slot in slots:
            if not low - slack <= slot.alpha <= high + slack:
                yield Finding(
                    rule="encodings/alpha-clips",
                    severity=Severity.WARNING,
                    message=f"strength {slot.alpha:g} of adapter {slot.adapter!r} is outside the "
                    f"range [{low:g}, {high:g}] of the alpha input and would clip",
                    where=Where(use_case=name, adapter=slot.adapter),
                    hint="widen the encoding of the alpha input in the base's encodings",
                )
