"""ensure_weight_tying: what was trained of an embedding is in the file for its tied layer too.

    embed_tokens.lora_embedding_A [r, V], _B [dim, r]      targeted
    lm_head.lora_A [r, dim], lora_B [V, r]                 not targeted: the same, transposed

Both are lowered as they are. Here is which tensors that accounts for.
"""

from __future__ import annotations

from collections.abc import Mapping

from lora_quant.adapters.description import ParameterShape
from lora_quant.adapters.files.checkpoint import Checkpoint
from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.files.tensor_source import TensorSource
from lora_quant.adapters.frame.module_match import read_targets
from lora_quant.adapters.frame.replaced_parameters import parameter_shape
from lora_quant.adapters.kinds.lora_pairs import EMBEDDING, LINEAR

FIELD = "ensure_weight_tying"
_WEIGHT = ".weight"


def tied_modules(modules: Mapping[str, Mapping[str, str]], checkpoint: Checkpoint) -> set[str]:
    """Modules that are in the file because an embedding is, with its shapes transposed."""
    if not checkpoint.config.flag(FIELD):
        return set()
    targets, source = read_targets(checkpoint.config), checkpoint.tensors

    def shapes(names: Mapping[str, str], pair: tuple[str, str]) -> tuple[tuple[int, ...], ...]:
        return tuple(source.info(names[name]).shape for name in pair if name in names)

    transposed = {
        tuple(shape[::-1] for shape in reversed(shapes(names, EMBEDDING)))
        for names in modules.values()
        if EMBEDDING[0] in names
    }
    return {
        module
        for module, names in modules.items()
        if not targets.matches(module) and shapes(names, LINEAR) in transposed
    }


def tied_parameters(
    others: Mapping[str, str], config: PeftConfig, source: TensorSource
) -> dict[str, ParameterShape]:
    """Weights that are in the file because one of the same shape is in modules_to_save."""
    if not config.flag(FIELD):
        return {}
    entries = config.names("modules_to_save") or ()
    saved = (entries,) if isinstance(entries, str) else entries
    weights = {
        name: source.info(tensor).shape for name, tensor in others.items() if name.endswith(_WEIGHT)
    }
    of_saved = {
        name: shape
        for name, shape in weights.items()
        if any(name.removesuffix(_WEIGHT).endswith(entry) for entry in saved)
    }
    return {
        name: parameter_shape(name, others[name], source)
        for name, shape in weights.items()
        if name not in of_saved and len(shape) == 2 and shape in of_saved.values()
    }
