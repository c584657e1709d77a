"""The base's modules as lowering rules see them: by the names that one adapter gives them.

placements of the adapter's modules + weights of the graph  ->  sizes, tiles, biases, order
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.adapter import Adapter
from lora_quant.adapters.base_modules import BaseModules, BaseSizes, Tile
from lora_quant.errors import AttachPointError, UnsupportedAdapterError, Where, did_you_mean
from lora_quant.graph.attach.name_table import NameTable
from lora_quant.graph.attach.resolver import ModuleSizes, Resolution
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.values.base_weights import GraphWeights
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.module_map import module_map


class ModuleWeights:
    """The modules of one adapter in one graph; meets lora_quant.adapters.base_modules.BaseModules.

    `mapping` is the attach point mapping, whose order is that of the model's definition; None if
    none was given.
    """

    def __init__(
        self,
        base: BaseGraph,
        resolution: Resolution,
        modules: Sequence[str],
        *,
        adapter: str,
        mapping: Mapping[str, list[str]] | None = None,
        mapping_file: Path | None = None,
    ) -> None:
        self._file = base.path
        self._weights = GraphWeights(base)
        self._resolution = resolution
        self._modules = tuple(modules)
        self._adapter = adapter
        self._mapping = mapping
        self._mapping_file = mapping_file

    def sizes(self, module: str) -> BaseSizes:
        """Sizes of a module; AttachPointError if the base has no such module."""
        sizes = self._sizes(module)
        return BaseSizes(
            in_features=sizes.in_features,
            out_features=sizes.out_features,
            kernel=sizes.kernel,
            groups=sizes.groups,
            is_embedding=sizes.is_embedding,
        )

    def tiles(self, module: str) -> Iterator[Tile]:
        """The weight in tiles of a few megabytes that together cover it once, in storage order.

        Raises AttachPointError, GraphError or InputMissingError.
        """
        kernel = self._sizes(module).kernel
        for tile in self._weights.tiles(*self._resolution.place(module)):
            rows, columns = tile.values.shape[:2]
            # A linear layer may be stored as a convolution of kernel one.
            yield Tile(tile.rows, tile.columns, tile.values.reshape(rows, columns, *kernel))

    def bias(self, module: str) -> NDArray[np.float64]:
        """The bias `[out]`, zeros for a module without one; raises as `tiles` does."""
        self._sizes(module)
        return self._weights.bias(*self._resolution.place(module))

    def order(self) -> tuple[str, ...]:
        """The modules of the mapping in its order, those of the adapter by its own names.

        Raises UnsupportedAdapterError without a mapping, or if the mapping does not tell where a
        module of the adapter stands.
        """
        where = Where(file=self._mapping_file or self._file, adapter=self._adapter)
        if self._mapping is None:
            raise UnsupportedAdapterError(
                "the order of modules in the model's definition is not known from a graph",
                where=where,
                hint="give an `attach_point_onnx_mapping` that lists the modules in the order of "
                "`named_modules()`",
            )
        table = NameTable(self._mapping)
        spelled: dict[str, str] = {}
        for module in self._modules:
            names = table.find(module)
            if len(names) != 1 or names[0] in spelled:
                count = sum(name not in spelled for name in names)
                raise UnsupportedAdapterError(
                    f"the place of module {module!r} in the order of the model's modules is not "
                    f"known: {count} entries of the mapping can be it, expected one",
                    where=Where(file=where.file, adapter=self._adapter, module=module),
                    hint="list every module of the model once, in the order of `named_modules()`",
                )
            spelled[names[0]] = module
        return tuple(spelled.get(name, name) for name in self._mapping)

    def _sizes(self, module: str) -> ModuleSizes:
        sizes = self._resolution.sizes.get(module) if module in self._modules else None
        if sizes is None:
            raise AttachPointError(
                f"the base has no module {module!r} that adapter {self._adapter!r} adapts",
                where=Where(file=self._file, adapter=self._adapter, module=module),
                hint=did_you_mean(module, self._modules),
            )
        return sizes


def base_modules(compilation: Compilation, adapter: Adapter) -> BaseModules:
    """What a rule may ask of the base for one adapter; attach points have been resolved."""
    return ModuleWeights(
        compilation.base,
        compilation.having("resolution"),
        tuple(adapter.shapes),
        adapter=adapter.name,
        mapping=module_map(compilation).written,
        mapping_file=compilation.config.attach_point_onnx_mapping,
    )
