"""Which use cases an encodings file, or a list of tensors, can belong to by the names in it.

All of its names have to be in the use case's graph, and it has to know the branches there, as many
of their tensors as of any other use case. A per-channel A has as many scales as it has ranks.
Where no graph holds the branches, the names of branch tensors tell modules, which adapters have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora_quant.configure.found.found_files import FoundEncodings, FoundGraph, FoundList
from lora_quant.configure.pairing.claims import Claim
from lora_quant.encodings.branch_names import Role, find_branch_names
from lora_quant.passes.exported.descriptions import Described
from lora_quant.passes.exported.factors import WeightsDescribed

# An exporter may list a tensor or two that a later step removed from the graph.
_LEAST_KNOWN = 0.9


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of one use case: the names in its graph, and those of its branches."""

    names: frozenset[str]
    branch_tensors: frozenset[str]
    a_ranks: Mapping[str, int]

    @classmethod
    def of(cls, graph: FoundGraph) -> Known:
        """Of a graph that was read."""
        return cls(graph.names, graph.branch_tensors, graph.a_ranks)


def encodings_claim(found: FoundEncodings, use_cases: Mapping[str, Known]) -> Claim:
    """The use cases whose graph an encodings file describes."""
    possible = {
        name: known for name, known in use_cases.items() if _ranks_agree(found.channels, known)
    }
    claim = _claim(found.path, found.names, possible, "names", _branches(use_cases))
    return replace(claim, version=version_of(found))


def version_of(found: FoundEncodings) -> tuple[int, ...]:
    """The version as numbers; a fragment without one is the oldest."""
    return tuple(int(part) for part in (found.version or "").split(".") if part.isdigit())


def list_claim(found: FoundList, use_cases: Mapping[str, Known]) -> Claim:
    """The use cases that a list of quant-updatable tensors is of: those that have branches."""
    branched = {name: known for name, known in use_cases.items() if known.branch_tensors}
    return _claim(found.path, found.names, branched, "lines", _branches(use_cases))


def claim_by_modules(
    path: Path,
    names: frozenset[str],
    channels: Mapping[str, int],
    base: tuple[str, Known],
    use_cases: Mapping[str, Sequence[Described] | None],
) -> Claim:
    """The use cases whose adapters have the modules that the names tell, and their ranks.

    `base`: the use case without adapters. Without names of branches a file is the base's. None
    stands for adapters of which it is not known.
    """
    ranks = encoded_ranks(names, channels)
    if not ranks:
        return _claim(path, names, {base[0]: base[1]}, "names")
    fits = tuple(
        name for name, adapters in use_cases.items() if adapters is None or _have(adapters, ranks)
    )
    return Claim(path, fits, f"it names branches at {len(ranks)} modules")


def encoded_ranks(names: frozenset[str], channels: Mapping[str, int]) -> dict[str, int | None]:
    """Module with a branch -> its rank, None where A has one scale for all of its ranks."""
    ranks: dict[str, int | None] = {}
    for branch in find_branch_names(sorted(names)).values():
        if branch.role is Role.A:
            ranks[branch.module] = channels.get(branch.tensor)
    return ranks


def _have(adapters: Sequence[Described], ranks: Mapping[str, int | None]) -> bool:
    totals = dict.fromkeys(ranks, 0)
    for adapter in adapters:
        settings = adapter.settings(list(ranks))
        if isinstance(adapter, WeightsDescribed) and len(settings) < len(adapter.adapter.shapes):
            return False  # it would have branches at other modules too
        for module, setting in settings.items():
            totals[module] += setting.rank
    return all(total and ranks[module] in (None, total) for module, total in totals.items())


def _claim(
    path: Path,
    names: frozenset[str],
    use_cases: Mapping[str, Known],
    what: str,
    branches: frozenset[str] = frozenset(),
) -> Claim:
    """The use cases that fit best; `branches` are the branch tensors of all, fitting or not."""
    own = names & branches
    scores: dict[str, tuple[float, float]] = {}
    most = 0
    for name, known in use_cases.items():
        inside = len(names & known.names)
        most = max(most, inside)
        if not names or inside < _LEAST_KNOWN * len(names) or not own <= known.names:
            continue
        covered = len(own & known.branch_tensors)
        share = covered / len(known.branch_tensors) if known.branch_tensors else 1.0
        scores[name] = (inside / len(names), share)
    if not scores:
        return Claim(path, (), f"{most} of its {len(names)} {what} are in a graph")
    best = max(scores.values())
    fits = tuple(name for name, score in scores.items() if score == best)
    return Claim(path, fits, f"its {len(names)} {what} are in the graph")


def _branches(use_cases: Mapping[str, Known]) -> frozenset[str]:
    return frozenset[str]().union(*(known.branch_tensors for known in use_cases.values()))


def _ranks_agree(channels: Mapping[str, int], known: Known) -> bool:
    return all(channels.get(weight, rank) == rank for weight, rank in known.a_ranks.items())
