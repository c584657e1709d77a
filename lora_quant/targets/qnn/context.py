"""The qnn target's graph compiled for a device: an EPContext graph and its binary.

    model.onnx without defaults  ->  compiler  ->  EPContext graph, binary
                                                   + the defaults of its inputs

The compiler drops graph inputs that have a default. So it is given the graph without any, and they
are put back into what it makes.
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

from lora_quant.engines.htp_processes import compile_context, run_on_htp
from lora_quant.engines.qnn import check_arch
from lora_quant.errors import ConfigError, LoraQuantError, VerificationError, Where
from lora_quant.graph.device.device_graph import QuantizedGraph
from lora_quant.passes.compilation import Compilation
from lora_quant.targets.files.pack_folder import PackFolder, cannot_write

CONTEXT = "model_ctx.onnx"
_BARE = ".model_without_defaults.onnx"


def write_context(
    compilation: Compilation, folder: PackFolder, graph: QuantizedGraph, target: str
) -> None:
    """Compile the graph, whose data is in the pack already, and check that the result opens.

    Raises VerificationError if the compiler does not take the graph.
    """
    place = folder.root / target
    arch = compilation.options.htp_arch
    bare = place / _BARE
    try:
        with tempfile.TemporaryDirectory(prefix=".context.", dir=place) as name:
            bare.write_bytes(graph.graph_bytes_without_defaults())
            compilation.progress("compile the context", 0, 1)
            compiled, *binaries = compile_context(bare, Path(name) / CONTEXT, htp_arch=arch)
            data = graph.with_defaults(compiled.read_bytes())
            for binary in binaries:
                folder.copy(f"{target}/{binary.name}", "context-data", binary)
        with folder.create(f"{target}/{CONTEXT}", "context") as sink:
            sink.write(data)
        run_on_htp(place / CONTEXT, [], htp_arch=arch)
    except VerificationError as error:
        # The file that it names is in the folder that the pack grows in.
        raise VerificationError(
            error.message, where=Where(file=folder.output / target), hint=error.hint
        ) from error
    except LoraQuantError:
        raise  # some of them are OSErrors as well
    except OSError as error:
        raise cannot_write(place, error) from error
    finally:
        bare.unlink(missing_ok=True)


def check_compiler(compilation: Compilation) -> None:
    """Raises ConfigError for an unknown architecture, and a context that nothing compiles here."""
    options = compilation.options
    check_arch(options.htp_arch)
    if options.qnn_context and importlib.util.find_spec("onnxruntime_qnn") is None:
        raise ConfigError(
            "a context is compiled by onnxruntime-qnn, which is not installed",
            where=Where(field="qnn_context"),
            hint="pip install 'lora-quant[qnn]' (Python 3.11 or later), or leave out "
            "--qnn-context: the graph itself is compiled where it is opened",
        )
