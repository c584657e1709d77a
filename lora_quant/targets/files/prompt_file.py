"""The soft prompt of a use case as a file of its own.

<target>/<use case>/prompt.safetensors    `prefix_embeds` or `past_key_values`, float32
"""

from __future__ import annotations

from lora_quant.graph.records import TensorRecord
from lora_quant.passes.compilation import Compilation
from lora_quant.targets.files.pack_folder import PackFolder
from lora_quant.targets.files.safetensors_writer import write_safetensors

PROMPT = "prompt.safetensors"


def write_prompt(compilation: Compilation, folder: PackFolder, target: str, use_case: str) -> None:
    """Write the file if an adapter of the use case is a soft prompt; there is one at most."""
    for slot in compilation.having("slots").use_cases[use_case]:
        inputs = compilation.prompts.get(slot.adapter)
        if inputs is None:
            continue
        record = TensorRecord(inputs.shape.form, inputs.shape.shape, "float32")
        values = compilation.having("adapters")[slot.adapter].prompt()
        with folder.create(f"{target}/{use_case}/{PROMPT}", "prompt", use_case) as sink:
            write_safetensors(sink, (record,), [(record.name, values)])
