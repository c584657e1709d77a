"""FOURIERFT and WAVEFT: a few trained coefficients at random places, transformed to a full matrix.

    FOURIERFT    ΔW = scaling * real part of ifft2(S)
    WAVEFT       ΔW = scaling * one inverse wavelet step of S, or S itself without use_idwt

S is `[out, in]` and zero but for n places, which the seed and both sizes give. A wavelet makes a
matrix smaller, so S is first put into the middle of a larger one.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.base_modules import BaseSizes
from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.frame.dotted_patterns import dotted_value
from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.frame.patterns import match_patterns
from lora_quant.adapters.lowered import Dense, ModuleShape, Need
from lora_quant.adapters.maths.seeded import fourierft_indices, waveft_indices
from lora_quant.adapters.maths.wavelets import MOMENTS, inverse_step
from lora_quant.errors import UnsupportedAdapterError

Matrix = NDArray[np.float64]
_SEED = 777


class FourierftRule(KindRule):
    """ΔW = scaling Re ifft2(S)."""

    kind: ClassVar[str] = "FOURIERFT"
    rank = "full"
    required = ("fourierft_spectrum",)
    used = frozenset({"n_frequency", "n_frequency_pattern", "random_loc_seed", "scaling"})
    neutral = frozenset({"fan_in_fan_out", "init_weights"})

    def shape(self, headers: Headers) -> ModuleShape:
        """The spectrum tells neither in nor out."""
        expected = dotted_value(
            headers.config, "n_frequency_pattern", "n_frequency", headers.module, 1000
        )
        return _shape(headers, "fourierft_spectrum", expected)

    def formula(self, module: ModuleTensors) -> Dense:
        """delta = scaling Re ifft2(S)."""
        spectrum, sizes = module["fourierft_spectrum"], module.base.sizes(module.shape.module)
        seed = module.config.whole("random_loc_seed", _SEED)
        rows, columns = fourierft_indices(
            seed, sizes.out_features, sizes.in_features, len(spectrum), where=module.where
        )
        S = np.zeros((sizes.out_features, sizes.in_features))
        S[rows, columns] = spectrum
        return Dense(np.fft.ifft2(S).real * module.config.number("scaling", 150.0))


class WaveftRule(KindRule):
    """ΔW = scaling idwt2(S)."""

    kind: ClassVar[str] = "WAVEFT"
    rank = "full"
    required = ("waveft_spectrum",)
    used = frozenset(
        {
            "n_frequency",
            "n_frequency_pattern",
            "proportional_parameters",
            "random_loc_seed",
            "scaling",
            "use_idwt",
            "wavelet_family",
        }
    )
    neutral = frozenset({"fan_in_fan_out", "init_weights"})

    def check(self, config: PeftConfig) -> None:
        """Refuse a wavelet whose filters were not compared with PEFT's."""
        family = _family(config)
        if config.flag("use_idwt", True) and family not in MOMENTS:
            raise UnsupportedAdapterError(
                f"wavelet_family is {family!r}, expected one of {', '.join(MOMENTS)}",
                where=config.where("wavelet_family"),
                hint="train with one of these wavelets, or merge the adapter into the base with "
                "PEFT",
            )

    def shape(self, headers: Headers) -> ModuleShape:
        """The spectrum tells neither in nor out."""
        return _shape(headers, "waveft_spectrum", _waveft_count(headers))

    def formula(self, module: ModuleTensors) -> Dense:
        """delta = scaling idwt2(S), S in the middle of zeros."""
        config, spectrum = module.config, module["waveft_spectrum"]
        sizes = module.base.sizes(module.shape.module)
        out, inside = sizes.out_features, sizes.in_features
        places = waveft_indices(
            config.whole("random_loc_seed", _SEED), out, inside, len(spectrum), where=module.where
        )
        moments = MOMENTS[_family(config)] if config.flag("use_idwt", True) else None
        return Dense(
            config.number("scaling", 25.0) * wavelet_update(spectrum, places, sizes, moments)
        )


def wavelet_update(
    spectrum: NDArray[np.float64],
    places: NDArray[np.int64],
    sizes: BaseSizes,
    moments: int | None,
) -> Matrix:
    """`spectrum [n]` at `places [2, n]`, transformed: `[out, in]`; as it is if moments is None."""
    out, inside = sizes.out_features, sizes.in_features
    # a step takes 2 moments - 2 rows and columns away, and needs even numbers of them
    more = 0 if moments is None else 2 * moments - 2
    grid = (out + more, inside + more)
    if moments is not None:
        grid = (grid[0] + grid[0] % 2, grid[1] + grid[1] % 2)
    top, left = (grid[0] - out) // 2, (grid[1] - inside) // 2
    S = np.zeros(grid)
    S[places[0] + top, places[1] + left] = spectrum
    if moments is None:
        return S
    matrix = inverse_step(S, moments)
    top, left = (matrix.shape[0] - out) // 2, (matrix.shape[1] - inside) // 2
    return matrix[top : top + out, left : left + inside]


def _shape(headers: Headers, parameter: str, expected: int | None) -> ModuleShape:
    (count,) = headers.dims(parameter, 1)
    if expected is not None and count != expected:
        raise headers.error(
            parameter,
            f"{parameter} has {count} values, expected {expected} from the configuration",
        )
    return ModuleShape(
        headers.module, 0, None, None, scale=headers.scale, need=Need.SIZES, dense=True
    )


def _waveft_count(headers: Headers) -> int | None:
    """How many coefficients a module has; None where it depends on the sizes of all modules."""
    config = headers.config
    if config.flag("proportional_parameters"):
        return None
    patterns = config.positive_patterns("n_frequency_pattern")
    default = config.positive("n_frequency", 2592)
    matched, _ = match_patterns(config, "n_frequency_pattern", patterns, default, [headers.module])
    return matched[headers.module].value


def _family(config: PeftConfig) -> str:
    return str(config.names("wavelet_family") or "db1")
