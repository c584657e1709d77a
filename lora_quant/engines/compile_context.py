"""Compile a graph for the HTP into an EPContext; a program of its own.

    python -m lora_quant.engines.compile_context MODEL.onnx MODEL_ctx.onnx ARCH

The compiled graph is MODEL_ctx.onnx, which names the binary beside it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lora_quant.engines.htp_child import run_child
from lora_quant.engines.qnn import open_on_htp


def main(model: str, output: str, htp_arch: str) -> int:
    """Compile; 0, or 1 with the reason on stderr."""

    def work() -> None:
        open_on_htp(Path(model), htp_arch=htp_arch, context=Path(output))

    return run_child(work)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
