"""UNILORA: every entry of every factor is one of a few shared numbers, times a fixed scale.

    A = theta[a] a_scale        a [r, in]      theta [theta_d_length]
    B = theta[b] b_scale        b [out, r]

With `save_indices` the indices and scales are in the file. Without it the file holds theta alone:
it does not even name its modules, and PEFT counts them in the order of the model.
"""

from __future__ import annotations

from typing import ClassVar

from lora_quant.adapters.description import Description
from lora_quant.adapters.files.checkpoint import Checkpoint
from lora_quant.adapters.frame.key_table import read_keys
from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.lowered import Lowered, ModuleShape
from lora_quant.errors import UnsupportedAdapterError

_THETA = "unilora_theta_d"
_A, _B = "unilora_indices_A", "unilora_indices_B"
_A_SCALE, _B_SCALE = "unilora_scales_A", "unilora_scales_B"


class UniloraRule(KindRule):
    """ΔW = (theta[b] b_scale) (theta[a] a_scale)."""

    kind: ClassVar[str] = "UNILORA"
    rank = "r"
    required = (_A, _B, _A_SCALE, _B_SCALE)
    shared = (_THETA,)
    rank_field = ("r", 4)
    used = frozenset({"save_indices", "theta_d_length"})
    neutral = frozenset(
        {"fan_in_fan_out", "init_theta_d_bound", "init_weights", "proj_seed", "unilora_dropout"}
    )

    def describe(self, checkpoint: Checkpoint) -> Description:
        """As for every kind; a file without indices is refused, since it names no module."""
        source = checkpoint.tensors
        keys = read_keys(source, self.required, self.shared)
        if _THETA in keys.shared and not keys.modules:
            raise UnsupportedAdapterError(
                "the file holds unilora_theta_d alone: which modules it adapts, and with which "
                "indices, follows only from the model that was trained",
                where=checkpoint.config.where("save_indices"),
                hint="set save_indices to true in the configuration, load the adapter with PEFT on "
                "its base and save it again; the indices are then in the file",
            )
        return super().describe(checkpoint)

    def shape(self, headers: Headers) -> ModuleShape:
        """Rank and sizes from the indices."""
        rank, inputs = headers.index_dims(_A, 2)
        out, rank_B = headers.index_dims(_B, 2)
        if rank_B != rank:
            raise headers.error(_B, f"{_B} has {rank_B} columns, expected {rank} from {_A}")
        headers.expect({_A_SCALE: (rank, inputs), _B_SCALE: (out, rank)})
        headers.expect_rank(_A, rank)
        (length,) = headers.shared_dims(_THETA, 1)
        expected = headers.config.positive("theta_d_length", 256)
        if length != expected:
            raise headers.error(
                _A, f"{_THETA} has {length} values, expected theta_d_length = {expected}"
            )
        return ModuleShape(headers.module, rank, inputs, out, scale=headers.scale)

    def formula(self, module: ModuleTensors) -> Lowered:
        """A = theta[a] a_scale, B = theta[b] b_scale, s = 1."""
        theta = module[_THETA]
        a, b = (module.indices(name, below=len(theta)) for name in (_A, _B))
        return Lowered(theta[a] * module[_A_SCALE], theta[b] * module[_B_SCALE], module.s)
