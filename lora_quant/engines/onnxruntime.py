"""The door to ONNX Runtime: opening graphs, and running them with named values.

    graph = open_graph(path)                        one session; inputs, defaults, outputs by name
    graph.run({"x": x})                             numpy in, numpy out
    graph.run({"x": x}, {"lora_A": value})          values that are handed over as they are

Whatever the engine refuses becomes a VerificationError with the engine's own words in it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lora_quant.errors import VerificationError, Where

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Optimization = Literal["all", "basic"]

# Without this the library writes a usage database into the home folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_SILENT = 4  # only what ends the process: errors are reported here
_SPELLING = {"float": "float32", "double": "float64"}


def spelt(dtype: str) -> str:
    """An element type as numpy spells it: ONNX has other names for two of them."""
    return _SPELLING.get(dtype, dtype)


def load_onnxruntime() -> Any:
    """The library; VerificationError with what to install if it is missing."""
    try:
        import onnxruntime
    except ImportError as error:
        raise VerificationError(
            "running a graph needs ONNX Runtime, which is not installed",
            hint="pip install 'lora-quant[runtime]'",
        ) from error
    return onnxruntime


@dataclass(frozen=True)
class GraphValue:
    """An input or output of a graph.

    dtype: `float32`, `int8`, ... in the spelling of numpy; None for what is not a tensor. shape: a
    number is a fixed size, text the name of a symbolic one, None a size without a name.
    """

    name: str
    dtype: str | None
    shape: tuple[int | str | None, ...]


class LoadedGraph:
    """A session of ONNX Runtime. Several threads may run it at a time.

    `inputs` have to be fed, `defaults` are the inputs with an initializer, which may be.
    """

    def __init__(self, session: Any, source: Path) -> None:
        """`source` is named in errors."""
        self._session = session
        self._source = source
        self._library = load_onnxruntime()
        self.inputs = tuple(map(_value, session.get_inputs()))
        self.defaults = tuple(map(_value, session.get_overridable_initializers()))
        self.outputs = tuple(map(_value, session.get_outputs()))
        self._names = [output.name for output in self.outputs]

    def run(
        self,
        inputs: Arrays,
        values: Mapping[str, Any] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> dict[str, Array]:
        """Outputs by name, in the types of the graph; all of them unless some are named.

        `values` are those of `value_of` or of an adapter file; no name may be in `inputs` as well.
        Raises VerificationError if the graph does not run, or if an output is no tensor or of a
        type that the engine cannot hand over (bfloat16).
        """
        names = self._names if outputs is None else list(outputs)
        with _refused(
            "ONNX Runtime cannot run the graph",
            self._source,
            "check the shapes and the values of the inputs",
        ):
            results = self._session.run(names, {**(values or {}), **inputs})
        for name, result in zip(names, results, strict=True):
            if not isinstance(result, np.ndarray):
                raise VerificationError(
                    f"output {name!r} cannot be handed over: got {type(result).__name__}, expected "
                    "a tensor",
                    where=Where(file=self._source, tensor=name),
                    hint="export the graph with outputs that are tensors",
                )
        return dict(zip(names, results, strict=True))

    def value_of(self, array: Array) -> Any:
        """An array as the engine takes it. It is not copied: do not change it while it is used."""
        with _refused("ONNX Runtime does not take the values", self._source):
            return self._library.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))


def open_graph(
    graph: Path | bytes,
    *,
    source: Path | None = None,
    data_folder: Path | None = None,
    optimization: Optimization = "all",
    threads: int | None = None,
    prepare: Callable[[Any], None] | None = None,
) -> LoadedGraph:
    """Open a graph, on the CPU unless `prepare` puts another provider into the session's options.

    graph: a path, or a serialized graph, which needs `source` for errors and `data_folder` for its
    external data. optimization: basic leaves out fusions, which may reorder the sums of floats.
    threads: of one operator; the engine's own choice if None. Raises VerificationError if the
    engine does not take the graph.
    """
    library = load_onnxruntime()
    path = graph if isinstance(graph, Path) else source or Path("model.onnx")
    options = session_options(library, optimization)
    if threads is not None:
        options.intra_op_num_threads = threads
    if data_folder is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(data_folder.absolute())
        )
    providers = None if prepare is not None else ["CPUExecutionProvider"]
    with _refused("ONNX Runtime cannot load the graph", path):
        if prepare is not None:
            prepare(options)
        # With a fallback, Python prints errors and starts over on the CPU, and hides what happened.
        session = library.InferenceSession(
            str(graph) if isinstance(graph, Path) else graph,
            options,
            providers=providers,
            enable_fallback=False,
        )
        # Names are decoded only here, and need not be text.
        return LoadedGraph(session, path)


def session_options(library: Any, optimization: Optimization) -> Any:
    """Options of a session that logs nothing and multiplies what Q/DQ pairs give as floats.

    From 1.32 on, the engine turns a dequantized weight of 8 bits and its MatMul into MatMulNBits,
    and rounds the activations to 8 bits inside of it unless it is told not to; those of 16 bits
    lose 40 dB by that.
    """
    options = library.SessionOptions()
    options.log_severity_level = _SILENT
    options.graph_optimization_level = _level_of(library, optimization)
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    return options


def _level_of(library: Any, optimization: Optimization) -> Any:
    """The level of the engine. Before 1.30, "all" leaves out the last one, that of layouts.

    There the engine crashes when inputs of half precision have defaults.
    """
    levels = library.GraphOptimizationLevel
    if optimization == "basic":
        return levels.ORT_ENABLE_BASIC
    version = tuple(int(part) for part in library.__version__.split(".")[:2])
    return levels.ORT_ENABLE_ALL if version >= (1, 30) else levels.ORT_ENABLE_EXTENDED


@contextmanager
def _refused(what: str, source: Path, hint: str | None = None) -> Iterator[None]:
    try:
        yield
    except VerificationError:
        raise
    except Exception as error:  # the library has no common base for its errors
        raise VerificationError(
            f"{what}: {str(error).strip()}", where=Where(file=source), hint=hint
        ) from error


def _value(argument: Any) -> GraphValue:
    kind, _, inner = argument.type.partition("(")
    dtype = inner.removesuffix(")") if kind == "tensor" else None
    shape = tuple(size if isinstance(size, int | str) else None for size in argument.shape)
    return GraphValue(argument.name, None if dtype is None else spelt(dtype), shape)
