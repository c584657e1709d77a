"""The shape of a Llama-like decoder: what graph, adapters and encodings have in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Linear:
    """One projection: module path, node path, and the size of its weight `[in, out]`."""

    module: str
    node: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder; `tied` shares the embedding with the output projection."""

    layers: int
    hidden: int
    ff: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool

    @property
    def head(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    def projections(self, layer: int) -> Iterator[Linear]:
        """The seven projections of one layer, in the order of their nodes."""
        key_values = self.kv_heads * self.head
        for name, rows, columns in (
            ("self_attn.q_proj", self.hidden, self.hidden),
            ("self_attn.k_proj", self.hidden, key_values),
            ("self_attn.v_proj", self.hidden, key_values),
            ("self_attn.o_proj", self.hidden, self.hidden),
            ("mlp.gate_proj", self.hidden, self.ff),
            ("mlp.up_proj", self.hidden, self.ff),
            ("mlp.down_proj", self.ff, self.hidden),
        ):
            node = f"/model/layers.{layer}/{name.replace('.', '/')}"
            yield Linear(f"model.layers.{layer}.{name}", node, rows, columns)

    def all_projections(self) -> Iterator[Linear]:
        """The projections of all layers."""
        for layer in range(self.layers):
            yield from self.projections(layer)
