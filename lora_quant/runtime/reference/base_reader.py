"""The base's modules for lowering rules, as the reference reads them.

Kinds whose update depends on the base's own weight (DoRA and others) are lowered anew for the
reference, over this reader instead of the one that the build used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.adapter import Adapter
from lora_quant.adapters.base_modules import BaseSizes, Tile
from lora_quant.config.attach_map import read_attach_map
from lora_quant.engines.onnxruntime import Array
from lora_quant.errors import VerificationError, Where
from lora_quant.graph.attach.name_table import NameTable
from lora_quant.runtime.reference.base_view import BaseView, LinearView
from lora_quant.runtime.reference.sites import Site


@dataclass(frozen=True, eq=False)
class BaseReader:
    """Implements lora_quant.adapters.base_modules.BaseModules for one adapter.

    `sites` are its modules by the names that it gives them; `changed` holds what the adapter puts
    in the place of the base's own constants, so that a table that was saved whole is the base of
    its update. `mapping` is the attach point mapping, None if none was given.
    """

    view: BaseView
    adapter: Adapter
    sites: Mapping[str, Site]
    changed: Mapping[str, Array]
    mapping: Path | None

    def sizes(self, module: str) -> BaseSizes:
        """Sizes of a module of the adapter."""
        linear = self._linear(module)
        kernel = linear.shape[2:]
        given = self.adapter.shapes[module].kernel
        # A graph may compute a linear layer as a convolution of kernel one.
        if given is not None and set(kernel) | set(given) <= {1}:
            kernel = given
        return BaseSizes(
            in_features=linear.shape[1] * linear.groups,
            out_features=self.sites[module].size,
            kernel=kernel,
            groups=linear.groups,
            is_embedding=linear.is_embedding,
        )

    def tiles(self, module: str) -> Iterator[Tile]:
        """The weight in two tiles, an upper and a lower half: rules must not rely on one."""
        sizes = self.sizes(module)
        site = self.sites[module]
        weight = self._linear(module).weight(self.changed)[site.rows]
        inputs = sizes.in_features // sizes.groups
        weight = weight.reshape(site.size, inputs, *sizes.kernel)
        half = (site.size + 1) // 2
        for rows in (slice(0, half), slice(half, site.size)):
            if rows.start < rows.stop:
                yield Tile(rows, slice(0, inputs), weight[rows])

    def bias(self, module: str) -> NDArray[np.float64]:
        """The bias `[out]` of a module, zeros without one.

        The factor of a Gemm is no part of the module: it multiplies all that the module computes.
        """
        linear = self._linear(module)
        bias = linear.bias(self.changed)[self.sites[module].rows]
        return bias if linear.gain in (0.0, 1.0) else bias / linear.gain

    def order(self) -> tuple[str, ...]:
        """The modules of the mapping in its order; VerificationError without a mapping."""
        where = Where(file=self.mapping or self.view.path, adapter=self.adapter.name)
        if self.mapping is None:
            raise VerificationError(
                "the order of the model's modules is not known: the manifest names no attach "
                "point mapping",
                where=where,
                hint="build the pack again with an `attach_point_onnx_mapping`",
            )
        listed = list(read_attach_map(self.mapping))
        names = NameTable(listed)
        own: dict[str, str] = {}
        for module in self.adapter.shapes:
            found = names.find(module)
            if len(found) != 1:
                raise VerificationError(
                    f"{len(found)} entries of the mapping can be module {module!r}, expected one",
                    where=where,
                    hint="list every module of the model once",
                )
            own[found[0]] = module
        return tuple(own.get(name, name) for name in listed)

    def _linear(self, module: str) -> LinearView:
        site = self.sites.get(module)
        if site is None:
            raise VerificationError(
                f"the pack has no place for module {module!r}",
                where=Where(adapter=self.adapter.name, module=module),
                hint="build the pack again",
            )
        return self.view.linear(site.node)
