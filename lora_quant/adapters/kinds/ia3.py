"""IA3: one trained vector that scales the outputs of a module, or its inputs.

    y = l * (W x + b)        l [out, 1]: g = l
    y = W (l * x) + b        l [1, in]:  h = l

There are no ranks: A is `[0, in]` and B `[out, 0]`, where a size that the file does not tell is 0.
In a convolution both are `[1, channels, 1, ...]`; `feedforward_modules` tells which modules scale
their inputs. LyCORIS scales W x without the bias, which then needs c = (1 - l) * b.
"""

from __future__ import annotations

import math
import re
from typing import ClassVar

import numpy as np

from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.formats.lycoris_kinds import IA3_BIAS
from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.frame.patterns import compile_regex
from lora_quant.adapters.lowered import Lowered, ModuleShape, Need
from lora_quant.errors import AdapterError, UnsupportedAdapterError, short

_UNSCALED = "unscaled"


class Ia3Rule(KindRule):
    """g = l or h = l."""

    kind: ClassVar[str] = "IA3"
    rank = "0"
    required = ("ia3_l",)
    used = frozenset({"feedforward_modules", IA3_BIAS})
    neutral = frozenset({"fan_in_fan_out", "init_ia3_weights"})

    def check(self, config: PeftConfig) -> None:
        """`feedforward_modules` as a text is an expression; refuse one that is none."""
        modules = config.names("feedforward_modules")
        if isinstance(modules, str):
            compile_regex(config, "feedforward_modules", modules)
        if config.fields.get(IA3_BIAS, _UNSCALED) != _UNSCALED:
            raise AdapterError(
                f"{IA3_BIAS} is {short(config.fields[IA3_BIAS])}, expected {_UNSCALED!r}",
                where=config.where(IA3_BIAS),
                hint="remove it unless the bias is not scaled",
            )

    def shape(self, headers: Headers) -> ModuleShape:
        """No ranks; the one size that the vector tells."""
        dims = headers.dims("ia3_l")
        config, module = headers.config, headers.module
        is_input = _scales_input(config, module)
        is_linear = len(dims) == 2
        if len(dims) < 2 or math.prod(dims) != (max(dims) if is_linear else dims[1]):
            raise headers.error(
                "ia3_l",
                f"ia3_l has shape {list(dims)}, expected [out, 1], [1, in] or, for a convolution, "
                "[1, channels, 1, ...]",
            )
        if is_linear:
            by_shape = None if dims == (1, 1) else dims[0] == 1
            if None not in (is_input, by_shape) and is_input != by_shape:
                raise headers.error(
                    "ia3_l",
                    f"ia3_l has shape {list(dims)}, but feedforward_modules "
                    f"{'names' if is_input else 'does not name'} the module",
                    hint="[1, in] scales inputs, which feedforward_modules has to name; correct it",
                )
            is_input = by_shape if by_shape is not None else is_input
        if is_input is None:
            raise UnsupportedAdapterError(
                "feedforward_modules is not given, and the shape of ia3_l does not tell whether "
                "inputs or outputs are scaled",
                where=config.where("feedforward_modules"),
                hint="PEFT writes it; list the modules whose inputs are scaled, [] if there are "
                "none",
            )
        size = max(dims)
        moves_bias = not is_input and IA3_BIAS in config.fields
        return ModuleShape(
            module,
            0,
            size if is_input else None,
            None if is_input else size,
            () if is_linear else None,
            vectors=frozenset("h" if is_input else "gc" if moves_bias else "g"),
            need=Need.SIZES if moves_bias else Need.NOTHING,
        )

    def formula(self, module: ModuleTensors) -> Lowered:
        """The vector as it is; A and B without ranks."""
        shape = module.shape
        A, B = np.zeros((0, shape.in_features or 0)), np.zeros((shape.out_features or 0, 0))
        vector = module["ia3_l"].reshape(-1)
        if "h" in shape.vectors:
            return Lowered(A, B, module.s, h=vector)
        c = (1 - vector) * module.base.bias(shape.module) if "c" in shape.vectors else None
        return Lowered(A, B, module.s, g=vector, c=c)


def _scales_input(config: PeftConfig, module: str) -> bool | None:
    """Whether the configuration says so, None if it says nothing.

    As in PEFT an entry of a list is the end of the path, wherever in a name it starts.
    """
    modules = config.names("feedforward_modules")
    if modules is None:
        return None
    if isinstance(modules, str):
        return re.fullmatch(modules, module) is not None
    return any(module.endswith(entry) for entry in modules)
