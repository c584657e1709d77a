"""FROD: the weight is written in a basis that modules of one role share, and its core is trained.

    W = U diag(l) V'      U' = columns of W V'^-1, each of length 1
    W' = U (diag(lambda_l) + S) V'        S [in, in], sparse: values at `frod_s_indices`

V `[in, in]` and the places of S belong to a role: the last two parts of a module's name. They are
in the file; U is computed from the base's weight. Where the file lacks V, PEFT computes it from all
weights of the role by an eigendecomposition whose signs no file tells, and S depends on them.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.base_modules import whole_weight
from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.frame.unsaved import expect_seeded
from lora_quant.adapters.lowered import Dense, ModuleShape, Need
from lora_quant.adapters.maths.weight_products import expect_weight
from lora_quant.errors import AdapterError, UnsupportedAdapterError, Where

Matrix = NDArray[np.float64]

_V, _PLACES, _SIZE = "frod_V", "frod_s_indices", "frod_s_size"
_LAMBDA, _VALUES = "frod_lambda_l", "frod_lambda_s_values"
# as PEFT does, a column this short has no direction
_SHORTEST = 1e-12
_EXACT = ("F32", "F64")


class FrodRule(KindRule):
    """ΔW = U (diag(lambda_l) + S) V' - W."""

    kind: ClassVar[str] = "FROD"
    rank = "full"
    required = (_LAMBDA, _VALUES)
    shared = (_V, _PLACES, _SIZE)
    used = frozenset({"save_projection"})
    neutral = frozenset(
        {
            "fan_in_fan_out",
            "frod_dropout",
            "init_weights",
            "progressbar",
            "projection_prng_key",
            "regularization_alpha",
            "runtime_offload_base_weight",
            "sparse_rate",
        }
    )

    def shape(self, headers: Headers) -> ModuleShape:
        """in from lambda_l; the file does not tell out."""
        (inputs,) = headers.dims(_LAMBDA, 1)
        name = f"{_V}.{role(headers.module)}"
        if name not in headers.shared:
            expect_seeded(headers.config, "save_projection", name)
            raise UnsupportedAdapterError(
                f"the file has no {name}: PEFT computes it from the base's weights, up to signs "
                "that depend on the machine, and the adapter's values depend on them",
                where=headers.config.where("save_projection"),
                hint="train with save_projection, or merge the adapter into the base with PEFT "
                "where it was trained",
            )
        if headers.shared_dims(name, 2) != (inputs, inputs):
            raise headers.error(
                _LAMBDA,
                f"{name} has shape {list(headers.shared_dims(name))}, expected "
                f"[{inputs}, {inputs}] from {_LAMBDA}",
            )
        dtype = headers.source.info(headers.shared[name]).dtype
        if dtype not in _EXACT:
            raise UnsupportedAdapterError(
                f"{name} is {dtype}, expected {' or '.join(_EXACT)}: PEFT makes U with the basis "
                "that it computes itself in float32, which a rounded one does not tell",
                where=Where(
                    file=headers.source.path, module=headers.module, tensor=headers.shared[name]
                ),
                hint="save the adapter in float32 where it was trained",
            )
        headers.dims(_VALUES, 1)
        return ModuleShape(
            headers.module,
            0,
            inputs,
            None,
            scale=headers.scale,
            need=Need.WEIGHT,
            dense=True,
        )

    def formula(self, module: ModuleTensors) -> Dense:
        """delta = U (diag(lambda_l) + S) V' - W."""
        name, lambdas = module.shape.module, module[_LAMBDA]
        inputs = len(lambdas)
        expect_weight(module.base, name, module.source.path, columns=inputs)
        V, W = module[f"{_V}.{role(name)}"], whole_weight(module.base, name)
        core = np.diag(lambdas)
        rows, columns = self._places(module, inputs)
        np.add.at(core, (rows, columns), module[_VALUES])
        try:
            turned: Matrix = np.linalg.solve(V, W.T).T.astype(np.float64, copy=False)
        except np.linalg.LinAlgError as error:
            raise AdapterError(
                f"{_V}.{role(name)} has no inverse, expected one",
                where=module.where,
                hint="the checkpoint is damaged; save or download it again",
            ) from error
        return Dense(unit_columns(turned) @ core @ V.T - W)

    @staticmethod
    def _places(module: ModuleTensors, inputs: int) -> NDArray[np.int64]:
        parameter = f"{_PLACES}.{role(module.shape.module)}"
        count = len(module[_VALUES])
        if parameter not in module:
            raise AdapterError(
                f"the file has no {parameter}, expected the places of {_VALUES}",
                where=module.where,
                hint="the checkpoint is incomplete; save or download it again",
            )
        places = module.indices(parameter, below=inputs)
        if places.shape != (2, count):
            raise AdapterError(
                f"{parameter} has shape {list(places.shape)}, expected [2, {count}] from {_VALUES}",
                where=module.where,
                hint="the tensors are not of one training; save the adapter again",
            )
        return places


def role(module: str) -> str:
    """The name of what modules of several layers share.

    `layers.3.self_attn.q_proj` -> `self_attn_q_proj`; only the last part behind a number or alone;
    `attention.output.dense` -> `attention_output`.
    """
    *before, last = module.split(".")
    if not before or before[-1].isdigit():
        return last
    if before[-2:] == ["attention", "output"] and last == "dense":
        return "attention_output"
    return f"{before[-1]}_{last}"


def unit_columns(matrix: Matrix) -> Matrix:
    """Each column over its length; zeros where it has none."""
    lengths = np.linalg.norm(matrix, axis=0)
    is_long = lengths > _SHORTEST
    return np.where(is_long, matrix / np.where(is_long, lengths, 1.0), 0.0)
