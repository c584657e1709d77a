"""Choosing among the mixes that a graph allows, and the strengths that are written.

content leaves one    ->  that one, whatever a configuration says
several               ->  the stated one, then the one that the use case's name tells
strengths             ->  of the graph, then as stated, then 1 with a note
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lora_quant.configure.found.found_files import StatedUseCase
from lora_quant.configure.mixing.mixes import Mix, same_strength
from lora_quant.configure.pairing.claims import named_after
from lora_quant.errors import Where, some
from lora_quant.findings import Finding, Severity


def chosen_mix(
    mixes: Sequence[Mix], name: str, stated: StatedUseCase | None
) -> tuple[Mix | None, str]:
    """The mix and why it was chosen; None if nothing decides."""
    if len(mixes) == 1:
        return mixes[0], "the only adapters with its ranks and scales"
    if stated is not None and stated.adapters:
        said = [mix for mix in mixes if mix.adapters == stated.adapters]
        if said:
            return said[0], "as a configuration says, and its ranks fit"
    alone = {mix.adapters[0]: mix for mix in mixes if len(mix.adapters) == 1}
    own = named_after(Path(name), list(alone), Path())
    if own is not None:
        return alone[own], "by its name, and its ranks fit"
    parts = [mix for mix in mixes if _is_named_by(name, mix.adapters)]
    return (parts[0], "by its name, and its ranks fit") if len(parts) == 1 else (None, "")


def strengths_of(
    mix: Mix,
    name: str,
    stated: StatedUseCase | None,
    findings: list[Finding],
    file: Path,
) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Those that the graph tells, then the stated ones, then 1 with a note."""
    said = (
        stated_strengths(stated) if stated is not None and stated.adapters == mix.adapters else {}
    )
    told = dict(zip(mix.adapters, mix.strengths, strict=True))
    missing = [a for a in mix.adapters if told[a] is None and a not in said]
    values = tuple(
        1.0 if value is None and a in missing else (said[a] if value is None else value)
        for a, value in told.items()
    )
    if not missing:
        return values, ()
    if len(mix.adapters) > 1:
        findings.append(
            Finding(
                "convert/strength-assumed",
                Severity.NOTE,
                f"no file tells the strengths of {some(missing)} in use case {name!r}: they are 1",
                Where(file=file, use_case=name),
                "write those that the use case was calibrated with",
            )
        )
    return values, ("no file tells the strengths: 1 is as trained",) if len(missing) > 1 else ()


def stated_strengths(stated: StatedUseCase | None) -> dict[str, float]:
    """The strengths that a configuration states, by adapter."""
    if stated is None or stated.adapters is None or stated.alphas is None:
        return {}
    return dict(zip(stated.adapters, stated.alphas, strict=False))


def contradicted(
    mix: Mix,
    strengths: Sequence[float],
    name: str,
    stated: StatedUseCase | None,
    file: Path,
) -> Iterator[Finding]:
    """What a configuration states otherwise than the graph tells."""
    if stated is None or not stated.adapters:
        return
    said = stated_strengths(stated)
    same = stated.adapters == mix.adapters and all(
        same_strength(value, said.get(adapter, value))
        for adapter, value in zip(mix.adapters, strengths, strict=True)
    )
    if not same:
        stated_mix = " + ".join(f"{said.get(a, 1):g} {a}" for a in stated.adapters)
        told = " + ".join(
            f"{value:g} {adapter}" for adapter, value in zip(mix.adapters, strengths, strict=True)
        )
        yield Finding(
            "convert/statement-contradicted",
            Severity.WARNING,
            f"a configuration says that use case {name!r} is {stated_mix}, and its graph holds "
            f"{told}: the graph counts",
            Where(file=file, use_case=name),
            "check that the graph is the one that was meant",
        )


def unusual(mix: Mix, name: str, stated: StatedUseCase | None, file: Path) -> Iterator[Finding]:
    """An adapter alone that its graph scales otherwise than trained: its alpha may be wrong."""
    strength = mix.strengths[0]
    if len(mix.adapters) > 1 or strength is None or same_strength(strength, 1.0):
        return
    if mix.adapters[0] in stated_strengths(stated):
        return
    yield Finding(
        "convert/unusual-strength",
        Severity.WARNING,
        f"the graph of use case {name!r} holds {strength:g} times the scale that alpha and rank of "
        f"adapter {mix.adapters[0]!r} give: it was taken as its strength",
        Where(file=file, use_case=name, adapter=mix.adapters[0]),
        "if the adapter was exported as it was trained, correct alpha or rank in its description",
    )


def _is_named_by(name: str, adapters: Sequence[str]) -> bool:
    """`tone+legal` is tone and legal, in this order."""
    left = name.casefold()
    for adapter in adapters:
        before, found, left = left.partition(adapter.casefold())
        if not found or any(c.isalnum() for c in before if before not in ("and", "_and_")):
            return False
    return not any(c.isalnum() for c in left)
