"""Which parameter each of PEFT's nested wrappers adapts, from ranks and sizes.

A wrapper that adapts p has A of r_p rows for every expert, and all parameters of a module have the
same experts. A projection that widens (gate_up_proj, up_proj, w1) has the inputs that the one that
narrows (down_proj, w2) has as outputs. If more than one arrangement fits, none is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from lora_quant.adapters.files.checkpoint import Checkpoint
from lora_quant.adapters.files.tensor_source import TensorSource
from lora_quant.adapters.frame.patterns import match_patterns
from lora_quant.adapters.kinds.lora_pairs import LINEAR
from lora_quant.errors import AdapterError, UnsupportedAdapterError, Where, some

_MOST_LEVELS = 4
# Parameter -> how many times the narrowing projection's inputs it has as outputs.
_WIDENING = {"gate_up_proj": 2, "gate_proj": 1, "up_proj": 1, "w1": 1, "w3": 1}
_NARROWING = ("down_proj", "w2")

_HINT = (
    "merge it into the base with PEFT (merge_and_unload) and export that, or train one of them "
    "with a rank of its own by rank_pattern"
)


@dataclass(frozen=True, eq=False)
class Level:
    """One wrapper: its path in the file, with a `.base_layer` for each wrapper around it."""

    path: str
    names: Mapping[str, str]
    source: TensorSource

    @property
    def pair(self) -> tuple[str, str]:
        """Names of A and B in the file; AdapterError if one is missing or another is there."""
        for name in LINEAR:
            if name not in self.names:
                present = next(iter(self.names))
                raise AdapterError(
                    f"the module has {present} but no {name}",
                    where=Where(
                        file=self.source.path, module=self.path, tensor=self.names[present]
                    ),
                    hint="the checkpoint is incomplete; save or download it again",
                )
        for name, tensor in self.names.items():
            if name not in LINEAR:
                raise UnsupportedAdapterError(
                    f"the tensor is {name} of a wrapped parameter, expected only "
                    f"{' and '.join(LINEAR)}",
                    where=Where(file=self.source.path, module=self.path, tensor=tensor),
                    hint="PEFT adapts parameters with plain LoRA only",
                )
        return self.names[LINEAR[0]], self.names[LINEAR[1]]

    def sizes(self) -> tuple[int, int, int]:
        """Rows of A, inputs, outputs."""
        a, b = (self.source.info(name).shape for name in self.pair)
        for name, shape in zip(self.pair, (a, b), strict=True):
            if len(shape) != 2:
                raise AdapterError(
                    f"the tensor has shape {list(shape)}, expected two axes",
                    where=Where(file=self.source.path, module=self.path, tensor=name),
                    hint="the checkpoint is damaged; save or download it again",
                )
        return a[0], a[1], b[0]


def assign_parameters(
    module: str, levels: Sequence[Level], parameters: Sequence[str], checkpoint: Checkpoint
) -> dict[str, Level]:
    """Parameter -> wrapper, of the wrappers around one module."""
    where = Where(file=checkpoint.tensors.path, module=module)
    if len(levels) != len(parameters):
        raise AdapterError(
            f"the file has tensors for {len(levels)} parameters of the module, expected "
            f"{len(parameters)} as target_parameters names: {', '.join(parameters)}",
            where=where,
            hint="correct target_parameters so that it agrees with the weights",
        )
    if len(levels) == 1:
        return {parameters[0]: levels[0]}
    if len(levels) > _MOST_LEVELS:
        raise UnsupportedAdapterError(
            f"{len(levels)} parameters of one module are adapted, expected at most {_MOST_LEVELS}: "
            "their order in the file is not told",
            where=where,
            hint=_HINT,
        )
    ranks = _ranks(module, parameters, checkpoint)
    sizes = [level.sizes() for level in levels]
    fitting = [
        order
        for order in permutations(parameters)
        if _fits(dict(zip(order, sizes, strict=True)), ranks)
    ]
    if len(fitting) != 1:
        raise UnsupportedAdapterError(
            f"which tensors adapt which of {some(parameters)} is not told by the file, and "
            f"{len(fitting) or 'no'} arrangements agree with their ranks and sizes, expected one",
            where=where,
            hint=_HINT,
        )
    return dict(zip(fitting[0], levels, strict=True))


def _ranks(module: str, parameters: Sequence[str], checkpoint: Checkpoint) -> dict[str, int]:
    config = checkpoint.config
    paths = {f"{module}.{parameter}": parameter for parameter in parameters}
    patterns = config.positive_patterns("rank_pattern")
    matched, _ = match_patterns(config, "rank_pattern", patterns, config.positive("r", 8), paths)
    return {paths[path]: match.value for path, match in matched.items()}


def _fits(sizes: Mapping[str, tuple[int, int, int]], ranks: Mapping[str, int]) -> bool:
    experts = {divmod(rows, ranks[p]) for p, (rows, _, _) in sizes.items()}
    if len(experts) != 1 or next(iter(experts))[1]:
        return False
    narrowing = [sizes[p] for p in sizes if p in _NARROWING]
    widening = [(sizes[p], _WIDENING[p]) for p in sizes if p in _WIDENING]
    return all(
        wide_in == narrow_out and wide_out == times * narrow_in
        for _, narrow_in, narrow_out in narrowing
        for (_, wide_in, wide_out), times in widening
    )
