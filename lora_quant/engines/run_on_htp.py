"""Run a graph on the HTP with one or more sets of inputs; a program of its own.

    python -m lora_quant.engines.run_on_htp MODEL.onnx FOLDER ARCH

FOLDER holds 0.safetensors, 1.safetensors, ... with the inputs by name; the outputs of each go to
0.out.safetensors and so on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from lora_quant.engines.htp_child import run_child
from lora_quant.engines.qnn import open_on_htp


def main(model: str, folder: str, htp_arch: str) -> int:
    """Run every set; 0, or 1 with the reason on stderr."""

    def work() -> None:
        graph = open_on_htp(Path(model), htp_arch=htp_arch)
        number = 0
        while (feeds := Path(folder) / f"{number}.safetensors").is_file():
            outputs = graph.run(load_file(feeds))
            save_file(
                {name: np.asarray(value, order="C") for name, value in outputs.items()},
                feeds.with_name(f"{number}.out.safetensors"),
            )
            number += 1

    return run_child(work)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
