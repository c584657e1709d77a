"""SHIRA and SUPERTUNING: single entries of the weight are trained.

    ΔW = values at their places, zero elsewhere        (SUPERTUNING: + alpha / r B A)

Places are in the file. Where SUPERTUNING does not save them, they are those of the weight's largest
(or smallest) magnitudes, in that order.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.base_modules import whole_weight
from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.lowered import Dense, ModuleShape, Need
from lora_quant.adapters.maths.weight_products import expect_weight
from lora_quant.errors import AdapterError, UnsupportedAdapterError

Places = NDArray[np.int64]

_VALUES, _INDICES = "supertuning_values", "supertuning_indices"
_LORA_A, _LORA_B = "supertuning_lora_A.weight", "supertuning_lora_B.weight"


class ShiraRule(KindRule):
    """ΔW = values at (row, column)."""

    kind: ClassVar[str] = "SHIRA"
    rank = "full"
    required = ("shira_weight", "shira_indices")
    rank_field = ("r", 32)
    # the mask is in the file, whatever made it
    neutral = frozenset({"fan_in_fan_out", "init_weights", "mask_type", "random_seed"})

    def shape(self, headers: Headers) -> ModuleShape:
        """The tensors tell neither in nor out, only their sum."""
        (count,) = headers.dims("shira_weight", 1)
        if headers.index_dims("shira_indices", 2) != (2, count):
            raise headers.error(
                "shira_indices",
                f"shira_indices has shape {list(headers.index_dims('shira_indices', 2))}, "
                f"expected [2, {count}] from shira_weight",
            )
        if count % headers.rank:
            raise headers.error(
                "shira_weight",
                f"shira_weight has {count} values, expected a multiple of r = {headers.rank}",
            )
        return ModuleShape(
            headers.module, 0, None, None, scale=headers.scale, need=Need.SIZES, dense=True
        )

    def formula(self, module: ModuleTensors) -> Dense:
        """delta[row, column] = value."""
        values, sizes = module["shira_weight"], module.base.sizes(module.shape.module)
        shape = (sizes.out_features, sizes.in_features)
        count = module.config.positive("r", 32) * sum(shape)
        if len(values) != count:
            raise AdapterError(
                f"shira_weight has {len(values)} values, expected r (in + out) = {count} for the "
                f"base's module of {shape[1]} inputs and {shape[0]} outputs",
                where=module.where,
                hint="the adapter was trained on another model; check the base",
            )
        places = module.indices("shira_indices", below=max(shape))
        return Dense(scattered(module, places[0], places[1], values, shape))


class SupertuningRule(KindRule):
    """ΔW = values at flat places + alpha / r B A."""

    kind: ClassVar[str] = "SUPERTUNING"
    rank = "full"
    required = (_VALUES,)
    optional = (_INDICES, _LORA_A, _LORA_B)
    used = frozenset({"lora_alpha", "r", "save_precomputed_indices", "select_top", "sparsity"})
    neutral = frozenset({"init_weights", "lora_dropout"})

    def shape(self, headers: Headers) -> ModuleShape:
        """Sizes from the LoRA where there is one; the base's weight where places are not saved."""
        (count,) = headers.dims(_VALUES, 1)
        is_saved = headers.has(_INDICES)
        if is_saved and headers.index_dims(_INDICES, 1) != (count,):
            raise headers.error(
                _INDICES,
                f"{_INDICES} has shape {list(headers.index_dims(_INDICES, 1))}, expected "
                f"[{count}] from {_VALUES}",
            )
        if not is_saved and headers.config.flag("save_precomputed_indices", True):
            raise headers.error(
                _VALUES, f"the module has no {_INDICES}, and save_precomputed_indices is not false"
            )
        inputs, out = self._lora(headers)
        return ModuleShape(
            headers.module,
            0,
            inputs,
            out,
            scale=headers.scale,
            need=Need.SIZES if is_saved else Need.WEIGHT,
            dense=True,
        )

    def formula(self, module: ModuleTensors) -> Dense:
        """delta = values at their places + alpha / r B A."""
        name, config = module.shape.module, module.config
        sizes, values = module.base.sizes(name), module[_VALUES]
        shape = (sizes.out_features, sizes.in_features)
        expect_weight(
            module.base,
            name,
            module.source.path,
            out=module.shape.out_features,
            columns=module.shape.in_features,
        )
        expected = int(shape[0] * shape[1] * (1 - config.number("sparsity", 0.99)))
        if len(values) != expected:
            raise AdapterError(
                f"{_VALUES} has {len(values)} values, expected {expected} from the sparsity and "
                f"the base's module of {shape[1]} inputs and {shape[0]} outputs",
                where=module.where,
                hint="the adapter was trained on another model; check the base",
            )
        if _INDICES in module:
            places = module.indices(_INDICES, below=shape[0] * shape[1])
        else:
            places = self._largest(module, len(values))
        delta = scattered(module, places // shape[1], places % shape[1], values, shape)
        if _LORA_A in module:
            A, B = module[_LORA_A], module[_LORA_B]
            delta += (config.number("lora_alpha", 0.0) / len(A)) * (B @ A)
        return Dense(delta)

    @staticmethod
    def _lora(headers: Headers) -> tuple[int | None, int | None]:
        """in and out of the LoRA beside the entries; None without one."""
        r = headers.config.fields.get("r")
        if r is None:
            if headers.has(_LORA_A) or headers.has(_LORA_B):
                raise headers.error(
                    _LORA_A, f"the module has {_LORA_A}, but the configuration has no r"
                )
            return None, None
        rank, inputs = headers.dims(_LORA_A, 2)
        out, _ = headers.dims(_LORA_B, 2)
        headers.expect({_LORA_B: (out, rank)})
        expected = headers.config.positive("r", 1)
        if rank != expected:
            raise headers.error(_LORA_A, f"{_LORA_A} has {rank} rows, expected r = {expected}")
        return inputs, out

    @staticmethod
    def _largest(module: ModuleTensors, count: int) -> Places:
        """Flat places of the `count` largest magnitudes, largest first; or of the smallest."""
        magnitudes = np.abs(whole_weight(module.base, module.shape.module)).reshape(-1)
        keys = -magnitudes if module.config.flag("select_top", True) else magnitudes
        # one more than needed, to see whether the last one was a choice among equals
        last = min(count, len(keys) - 1)
        order = np.argpartition(keys, last)[: last + 1]
        order = order[np.argsort(keys[order], kind="stable")]
        ties = int((np.diff(keys[order]) == 0).sum())
        if ties:
            raise UnsupportedAdapterError(
                f"{ties} of the {count} selected weights are as large as the next one: their order "
                "is left to the sorting of the machine that trained",
                where=module.where,
                hint="load the adapter with PEFT where it was trained, and save it again with "
                "save_precomputed_indices",
            )
        return order[:count].astype(np.int64)


def scattered(
    module: ModuleTensors,
    rows: Places,
    columns: Places,
    values: NDArray[np.float64],
    shape: tuple[int, int],
) -> NDArray[np.float64]:
    """Values added up at their places in `[out, in]`; AdapterError for a place outside."""
    if rows.max() >= shape[0] or columns.max() >= shape[1]:
        raise AdapterError(
            f"an entry is in row {int(rows.max())} or column {int(columns.max())}, expected "
            f"places in a weight of {list(shape)}",
            where=module.where,
            hint="the adapter was trained on another model; check the base",
        )
    delta = np.zeros(shape)
    np.add.at(delta, (rows, columns), values)
    return delta
