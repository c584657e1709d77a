"""Options of a build as a plain dataclass: the command line and its help derive from the fields.

This module imports nothing heavy, so that `--help` stays quick.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lora_quant.errors import ConfigError, Where

Mode = Literal["none", "adapter_only", "all"]
AlphaLayout = Literal["slot", "rank"]
FixedConflict = Literal["error", "base"]
EncodingsVersion = Literal["0.6.1", "1.0.0", "2.0.0"]
Stacking = Literal["refuse", "in-order"]
LoraWeights = Literal["as-encoded", "float", "int4", "int8", "int16"]


@dataclass(frozen=True)
class BuildOptions:
    """How a pack is built, apart from what goes into it."""

    targets: tuple[str, ...] = field(
        default=("qairt",),
        metadata={
            "metavar": "TARGET",
            "help": "What to write packs for: qairt, onnxruntime, qnn, or the target of a plugin; "
            "may be given several times.",
        },
    )
    create_lora_graph: bool = field(
        default=True,
        metadata={
            "help": "Build one graph of the max rank; without it, the given graph is final: its "
            "branches stay as they are, and only lists, weights, encodings and the importer's "
            "configuration are written."
        },
    )
    map_from: str | None = field(
        default=None,
        metadata={
            "metavar": "FLOAT_GRAPH",
            "help": "The float graph that the base was quantized from: it tells the module of "
            "each node where the quantizer left no trace of it.",
        },
    )
    mode: Mode = field(
        default="adapter_only",
        metadata={
            "help": "Which tensors may change their encoding between use cases: none (only "
            "weights switch), adapter_only (those of the branches), all (activations of the base "
            "too)."
        },
    )
    alpha_name: str = field(
        default="lora_alpha",
        metadata={"help": "Name of the graph input that carries the run-time strengths."},
    )
    alpha_layout: AlphaLayout = field(
        default="slot",
        metadata={
            "help": "Layout of that input: slot (one strength per adapter slot) or rank (one "
            "scale per rank position, expanded by the host)."
        },
    )
    beside_base: bool = field(
        default=False,
        metadata={
            "help": "Write the graph into the base's own folder and share its data file instead "
            "of copying it."
        },
    )
    strict_none: bool = field(
        default=False,
        metadata={
            "help": "With mode none, refuse use cases whose ranges differ instead of taking the "
            "union of the ranges."
        },
    )
    force: bool = field(
        default=False,
        metadata={"help": "Replace the output folder if it exists."},
    )
    weight_bits: int = field(
        default=8,
        metadata={"help": "Bit width of weight encodings that are computed here."},
    )
    activation_bits: int = field(
        default=16,
        metadata={"help": "Bit width of activation encodings that are computed here."},
    )
    rank_multiple: int = field(
        default=1,
        metadata={
            "help": "Start every slot, and end the max rank, at a multiple of this: the block size "
            "of blockwise LoRA weights."
        },
    )
    fixed_conflict: FixedConflict = field(
        default="error",
        metadata={
            "help": "What to do when a use case's encoding of a fixed tensor disagrees with the "
            "base's: error (refuse) or base (take the base's, with a finding)."
        },
    )
    encodings_version: EncodingsVersion | None = field(
        default=None,
        metadata={"help": "Version of the encodings files to write; by default the one given."},
    )
    lora_weights: LoraWeights = field(
        default="as-encoded",
        metadata={
            "help": "How the onnxruntime target stores LoRA weights: as-encoded (on the grids of "
            "the encodings; as floats without any), float, or int4, int8, int16 (on grids that are "
            "computed from the values, with activations left as floats)."
        },
    )
    dims: tuple[str, ...] = field(
        default=(),
        metadata={
            "metavar": "NAME=SIZE",
            "help": "The size of a symbolic axis in the graph of the qnn target, which has to be "
            "static; may be given several times.",
        },
    )
    htp_arch: str = field(
        default="73",
        metadata={
            "help": "Architecture of the HTP that the graph of the qnn target is made for, and its "
            "context compiled."
        },
    )
    qnn_context: bool = field(
        default=False,
        metadata={
            "help": "Compile the graph of the qnn target into an EPContext binary as well; needs "
            "onnxruntime-qnn."
        },
    )
    stacking: Stacking = field(
        default="refuse",
        metadata={
            "help": "What to do when several adapters meet on a module whose output or input one "
            "of them scales (DoRA, IA3): refuse, or in-order (they act one after the other, as "
            "listed in the use case)."
        },
    )
    merge: str | None = field(
        default=None,
        metadata={
            "metavar": "USE_CASE",
            "help": "Put the adapters of this one use case into the base's weights: exact for "
            "every kind, with nothing to switch.",
        },
    )
    approximate: bool = field(
        default=False,
        metadata={
            "help": "Give adapters without a low rank the best approximation of rank "
            "--approximate-rank; needs --max-error."
        },
    )
    approximate_rank: int = field(
        default=32,
        metadata={"help": "Rank of these approximations."},
    )
    max_error: float | None = field(
        default=None,
        metadata={
            "help": "Largest relative Frobenius error of an approximated layer; the build fails "
            "above it."
        },
    )
    check_stages: bool = field(
        default=True,
        metadata={"help": "Verify the state between the passes."},
    )

    def __post_init__(self) -> None:
        """Refuse values that no build can use; ConfigError names the field."""
        for name, low, high in (
            ("weight_bits", 2, 32),
            ("activation_bits", 4, 32),
            ("rank_multiple", 1, 65536),
            ("approximate_rank", 1, 65536),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(
                    f"{name} is {value}, expected {low} to {high}", where=Where(field=name)
                )
        if not self.alpha_name.strip():
            raise ConfigError("alpha_name is empty", where=Where(field="alpha_name"))
        if not self.targets:
            raise ConfigError("no target is given", where=Where(field="targets"))
        if self.max_error is not None and not 0 <= self.max_error < 1:
            raise ConfigError(
                f"max_error is {self.max_error}, expected from 0 to less than 1",
                where=Where(field="max_error"),
            )
        self._check_together()

    def _check_together(self) -> None:
        """Refuse options that need another one, or that mean nothing beside merge."""
        if self.strict_none and self.mode != "none":
            raise _clash("strict_none", "without mode 'none'", "give both, or leave it out")
        size = "say how large the error of a layer may be, such as 0.05 for 5 per cent"
        if self.approximate and self.max_error is None:
            raise _clash("approximate", "without max_error", size)
        if self.max_error is not None and not self.approximate:
            raise _clash("max_error", "without approximate", "give both, or leave it out")
        # What the targets of plugins read is not known here.
        if set(self.targets) <= _TARGETS:
            for name, target in _OF_TARGET.items():
                if self._is_given(name) and target not in self.targets:
                    how = f"without the target {target!r}, which alone reads it"
                    raise _clash(name, how, "give both, or leave it out")
        if self.beside_base and set(self.targets) <= _WITH_OWN_DATA:
            how = "without a target that shares the base's data: qnn quantizes all of it"
            raise _clash("beside_base", how, "leave it out")
        if not self.create_lora_graph:
            self._check_final()
        if self.merge is None:
            return
        for name, reason in _NOT_MERGED.items():
            if self._is_given(name):
                raise _clash(name, f"with merge: {reason}", "leave one of them out")

    def _check_final(self) -> None:
        """Refuse what would make another graph of one that is final."""
        others = [name for name in self.targets if name not in _FINAL_TARGETS]
        if others:
            how = "without create_lora_graph, and writes a graph of its own"
            hint = f"a final graph has packs for {', '.join(sorted(_FINAL_TARGETS))} alone"
            raise _clash(f"the target {others[0]!r}", how, hint, field="targets")
        for name, reason in _NOT_FINAL.items():
            if self._is_given(name):
                how = f"without create_lora_graph: {reason}"
                raise _clash(name, how, "leave one of them out")

    def _is_given(self, name: str) -> bool:
        return bool(getattr(self, name) != BuildOptions.__dataclass_fields__[name].default)


_TARGETS = frozenset({"onnxruntime", "qairt", "qnn"})
_OF_TARGET = {
    "lora_weights": "onnxruntime",
    "dims": "qnn",
    "htp_arch": "qnn",
    "qnn_context": "qnn",
}
"""Options that one of the built-in targets reads."""

_WITH_OWN_DATA = frozenset({"qnn"})
"""Targets that write a data file of their own."""

_FINAL_TARGETS = frozenset({"qairt"})
"""Targets that take a graph as it is."""

_NOT_FINAL = {
    "alpha_layout": "the given graph has a layout of its own",
    "merge": "the given graph stays as it is",
}
"""Options that would change a final graph, each with the reason."""

_NO_SWITCH = "a merged graph has nothing to switch"
_NO_ENCODINGS = "a merged graph comes without encodings"
_NOT_MERGED = {
    "map_from": "nothing can be merged into quantized weights",
    "mode": _NO_SWITCH,
    "alpha_name": "a merged graph has no input for strengths",
    "alpha_layout": "a merged graph has no input for strengths",
    "beside_base": "the data file of the base cannot hold two sets of weights",
    "weight_bits": _NO_ENCODINGS,
    "activation_bits": _NO_ENCODINGS,
    "rank_multiple": "a merged graph has no ranks",
    "fixed_conflict": _NO_ENCODINGS,
    "encodings_version": _NO_ENCODINGS,
    "lora_weights": "a merged graph has no LoRA weights",
    "approximate": "it is exact for every kind",
}
"""Options that a merged build has no use for, each with the reason."""


def _clash(given: str, how: str, hint: str, *, field: str | None = None) -> ConfigError:
    return ConfigError(f"{given} is given {how}", where=Where(field=field or given), hint=hint)
