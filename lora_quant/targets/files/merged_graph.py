"""The base graph with one use case put into its weights: nothing is left to switch.

<target>/model.onnx, its data          the same nodes, other weights
<target>/<use case>/prompt.safetensors the soft prompt, if the use case has one
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from lora_quant.errors import ConfigError, Where
from lora_quant.graph.merging.merged_weights import write_merged
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.merged_values import MergedValues
from lora_quant.passes.replacements import replaced_values
from lora_quant.targets.files.pack_folder import PackFolder
from lora_quant.targets.files.prompt_file import write_prompt

MODEL = "model.onnx"


def write_merged_graph(compilation: Compilation, folder: PackFolder, target: str) -> None:
    """Write the graph and its data for the use case that the options name.

    Raises ConfigError for a use case with encodings, which do not fit other weights, GraphError for
    a weight that cannot be merged.
    """
    name = compilation.options.merge
    if name is None:
        raise TypeError("the options do not say which use case is merged")
    _check_encodings(compilation, name)
    data = write_merged(
        compilation.base,
        compilation.having("resolution").points,
        MergedValues(compilation, name).point,
        lambda file: folder.create(f"{target}/{file.location}", "graph-data"),
        replaced=_replaced(compilation),
    )
    with folder.create(f"{target}/{MODEL}", "graph") as sink:
        sink.write(data)
    write_prompt(compilation, folder, target, name)


def _replaced(compilation: Compilation) -> Mapping[str, Callable[[], NDArray[np.generic]]]:
    """Initializer -> its new values, read when they are written."""
    adapters = compilation.having("adapters")

    def values_of(index: int) -> Callable[[], NDArray[np.generic]]:
        one = compilation.replacements[index]
        return lambda: replaced_values(
            compilation.base, one.target, adapters[one.adapter], one.shape
        )

    return {
        one.target.weight.name: values_of(index)
        for index, one in enumerate(compilation.replacements)
    }


def _check_encodings(compilation: Compilation, name: str) -> None:
    for use_case in compilation.config.use_cases:
        if use_case.encodings is not None:
            raise ConfigError(
                f"use case {name!r} brings encodings, which do not fit the weights that it gives "
                "the base",
                where=Where(
                    file=compilation.config_file, field="quant_overrides", use_case=use_case.name
                ),
                hint="leave quant_overrides out, and quantize the merged graph anew",
            )
