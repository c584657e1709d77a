"""The graph of a session: opened on its device, held against the manifest, and what it takes."""

from __future__ import annotations

from pathlib import Path

from lora_quant.config.manifest_records import OverridableRecord, TargetRecord
from lora_quant.engines.onnxruntime import GraphValue, LoadedGraph, open_graph, spelt
from lora_quant.engines.qnn import chosen_arch, open_on_htp
from lora_quant.errors import VerificationError, Where
from lora_quant.runtime.session.pack_files import REBUILD, Device, SessionPack


def open_session_graph(
    pack: SessionPack, device: Device, threads: int | None, htp_arch: str | None
) -> LoadedGraph:
    """Open the graph of the target, or what is compiled of it for the HTP.

    Raises ConfigError for an architecture that the HTP or the graph has not, VerificationError if
    the engine does not open the graph, or if it has other inputs than the manifest records.
    """
    graph = _open(pack, device, threads, htp_arch)
    _check_graph(graph, pack.target, pack.require("graph"))
    return graph


class Ports:
    """What an application has to feed, what it may feed, and what use cases set (`reserved`).

    gate_sizes: batch and tokens of the input for gates, None where they may differ from run to run.
    """

    def __init__(self, pack: SessionPack, graph: LoadedGraph) -> None:
        alpha = pack.alpha
        self.reserved = {record.name for record in pack.target.inputs}
        if alpha is not None:
            self.reserved |= {alpha.tensor} | ({alpha.gate.tensor} if alpha.gate else set())
        self.required = {v.name: v for v in graph.inputs if v.name not in self.reserved}
        self.optional = {v.name: v for v in graph.defaults if v.name not in self.reserved}
        self.outputs = graph.outputs
        self.gate_sizes: tuple[int | None, ...] = (None, None)
        if alpha is not None and alpha.gate is not None:
            shapes = {v.name: v.shape for v in (*graph.inputs, *graph.defaults)}
            sizes = (*shapes.get(alpha.gate.tensor, ()), None, None)[:2]
            self.gate_sizes = tuple(size if isinstance(size, int) else None for size in sizes)


def _open(
    pack: SessionPack, device: Device, threads: int | None, htp_arch: str | None
) -> LoadedGraph:
    graph = pack.require("graph")
    if device == "cpu":
        return open_graph(graph, threads=threads)
    built = pack.target.htp_arch
    chosen = chosen_arch(htp_arch, built)
    compiled = pack.find("context") if chosen == built else None
    return open_on_htp(compiled or graph, htp_arch=chosen)


def _check_graph(graph: LoadedGraph, target: TargetRecord, source: Path) -> None:
    """Every input that the manifest records is one of the graph's, with a default, as recorded."""
    defaults = {value.name: value for value in graph.defaults}
    for record in target.inputs:
        value = defaults.get(record.name)
        got = "nothing" if value is None else told(value.dtype, value.shape)
        if value is None or not fits(record, value):
            raise VerificationError(
                f"graph and manifest disagree on the input {record.name!r}: got {got}, expected "
                f"{told(spelt(record.dtype), record.shape)} with a default",
                where=Where(file=source, tensor=record.name),
                hint=REBUILD,
            )


def fits(record: OverridableRecord, value: GraphValue) -> bool:
    """Whether dtype and sizes are those of a record, of which -1 is any."""
    return (
        value.dtype == spelt(record.dtype)
        and len(value.shape) == len(record.shape)
        and all(
            wanted in (-1, size) for wanted, size in zip(record.shape, value.shape, strict=True)
        )
    )


def told(dtype: str | None, shape: tuple[int | str | None, ...]) -> str:
    """A type and its sizes, `?` for those that are open."""
    return f"{dtype} [{', '.join('?' if size in (None, -1) else str(size) for size in shape)}]"
