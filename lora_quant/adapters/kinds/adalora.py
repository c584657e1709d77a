"""ADALORA: LoRA with a trained factor for each rank, some of which training takes away.

    ΔW = B diag(E) A * alpha / (init_r + 1e-5)        alpha = lora_alpha, or init_r if that is 0

The divisor is the rank at the start of training, not the one that is left; PEFT adds 1e-5 to it in
float32. `rank_pattern` lists for each module which of its ranks are left, and the tensors are cut
to those; a module may have none. In a convolution A is `[r, in * kernel]`.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.frame.fields import Refusal
from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.lowered import Lowered, ModuleShape
from lora_quant.errors import AdapterError, UnsupportedAdapterError, Where, short

_PLAIN = "train without it"


class AdaloraRule(KindRule):
    """ΔW = B diag(s) A, s = E * alpha / (init_r + 1e-5)."""

    kind: ClassVar[str] = "ADALORA"
    rank = "r that training left"
    required = ("lora_A", "lora_B", "lora_E")
    optional = ("ranknum",)
    rank_field = ("init_r", 12)
    alpha_field = ("lora_alpha", 8.0)
    used = frozenset({"rank_pattern"})
    neutral = frozenset(
        {
            "alpha_pattern",  # PEFT gives every module the one lora_alpha
            "beta1",
            "beta2",
            "corda_config",  # of initializations that AdaLoRA does not have
            "deltaT",
            "eva_config",
            "fan_in_fan_out",
            "init_lora_weights",
            "lora_dropout",
            "lora_ga_config",
            "megatron_config",
            "megatron_core",
            "orth_reg_weight",
            "qalora_group_size",
            "r",  # init_r counts
            "target_r",
            "tfinal",
            "tinit",
            "total_step",
            "use_rslora",  # PEFT leaves it out of the scale
        }
    )
    refused = MappingProxyType(
        {
            "alora_invocation_tokens": Refusal("AdaLoRA has no gate for tokens in PEFT", _PLAIN),
            "arrow_config": Refusal("Arrow routes among LORA adapters only", _PLAIN),
            "ensure_weight_tying": Refusal(
                "it ties the adapters of the embedding and of the output layer",
                "leave both out of target_modules and set it to false",
            ),
            "kasa_config": Refusal("KaSA is a variant of LORA only", _PLAIN),
            "layer_replication": Refusal(
                "the modules are counted in a stack of repeated layers",
                "merge it into the replicated model with PEFT and export that",
            ),
            "loftq_config": Refusal(
                "LoftQ belongs to a base that it quantized itself", "export that base, set it to {}"
            ),
            "lora_bias": Refusal("AdaLoRA has no bias of B in PEFT", _PLAIN),
            "monteclora_config": Refusal("MonteCLoRA is a variant of LORA only", _PLAIN),
            "target_parameters": Refusal("parameters are adapted instead of modules", _PLAIN),
            "trainable_token_indices": Refusal(
                "rows of the embedding are replaced beside the adapter",
                "save those as an adapter of their own (TRAINABLE_TOKENS)",
            ),
            "use_bdlora": Refusal("BD-LoRA is a variant of LORA only", _PLAIN),
            "use_dora": Refusal("PEFT itself does not combine AdaLoRA with DoRA", _PLAIN),
            "use_qalora": Refusal("QA-LoRA is a variant of LORA only", _PLAIN),
            "velora_config": Refusal("VeLoRA is a variant of LORA only", _PLAIN),
        }
    )

    def scale(self, config: PeftConfig, alpha: float, rank: int) -> float:
        """Alpha (init_r where it is not positive) over init_r + 1e-5 in float32."""
        del config
        numerator = alpha if alpha > 0 else float(rank)
        return numerator / float(np.float32(rank) + np.float32(1e-5))

    def check(self, config: PeftConfig) -> None:
        """Refuse lora_alpha 0 with a rank_pattern, which PEFT scales otherwise after a reload."""
        if self._alpha(config) <= 0 and not config.is_neutral("rank_pattern"):
            raise UnsupportedAdapterError(
                "lora_alpha is 0 beside a rank_pattern: PEFT scales by init_r while it trains, and "
                "by the rank that is left once the adapter is loaded again",
                where=config.where("lora_alpha"),
                hint="set lora_alpha to init_r to have what was trained",
            )

    def shape(self, headers: Headers) -> ModuleShape:
        """Rank as the tensors are cut, 0 where nothing is left of a module."""
        rank, inputs = headers.dims("lora_A", 2, may_be_empty=True)
        out, columns = headers.dims("lora_B", 2, may_be_empty=True)
        factors = headers.dims("lora_E", 2, may_be_empty=True)
        if columns != rank or factors != (rank, 1) or 0 in (inputs, out):
            raise headers.error(
                "lora_A",
                f"lora_A has shape {[rank, inputs]}, lora_B {[out, columns]} and lora_E "
                f"{list(factors)}, expected [r, in], [out, r] and [r, 1]",
            )
        left = _left(headers)
        if rank != left:
            raise headers.error(
                "lora_A",
                f"module {headers.module!r} has rank {rank} in the weights, expected {left} from "
                f"{'init_r' if headers.config.is_neutral('rank_pattern') else 'rank_pattern'}",
                hint="the configuration is not the one that the weights were saved with, and "
                "their scale depends on it",
            )
        return ModuleShape(headers.module, rank, inputs, out, None, headers.scale)

    def formula(self, module: ModuleTensors) -> Lowered:
        """A and B as stored, s = scale * E."""
        _check_start(module)
        s = module.shape.scale * module["lora_E"][:, 0]
        return Lowered(module.stored("lora_A"), module.stored("lora_B"), s)


def _left(headers: Headers) -> int:
    """The ranks of a module that training left."""
    if headers.config.is_neutral("rank_pattern"):
        return headers.rank
    masks: Any = headers.config.fields["rank_pattern"]
    if not isinstance(masks, dict):
        raise _wrong(headers.config, "rank_pattern", masks)
    for name, mask in masks.items():
        if not isinstance(mask, list) or not all(isinstance(kept, bool) for kept in mask):
            raise _wrong(headers.config, f"rank_pattern[{name!r}]", mask)
        if str(name).split(".lora_E")[0] == headers.module:
            return sum(mask)
    return headers.rank


def _wrong(config: PeftConfig, field: str, value: object) -> AdapterError:
    return AdapterError(
        f"{field} is {short(value)}, expected a list of true and false for each module",
        where=config.where("rank_pattern"),
        hint="save the adapter again with PEFT, or correct the field",
    )


def _check_start(module: ModuleTensors) -> None:
    """Hold `ranknum`, which old files have, against the rank that the scale was made with."""
    if "ranknum" not in module:
        return
    start = module["ranknum"].reshape(-1).tolist()
    expected = module.config.positive("init_r", 12)
    if start != [expected]:
        raise AdapterError(
            f"ranknum is {start}, expected {[expected]} as init_r",
            where=Where(
                file=module.source.path,
                module=module.shape.module,
                tensor=module.shape.tensors["ranknum"],
            ),
            hint="set init_r to the rank that the training started with",
        )
