"""Writing what tells the device how to switch: Genie's block, and a text for the QNN provider.

A graph without an input for strengths has no branches, and nothing to switch: it gets neither. A
final graph may scale its branches by constants: then there is no block, which is about strengths.
"""

from __future__ import annotations

from lora_quant.passes.compilation import Compilation
from lora_quant.passes.slots import SlotTable
from lora_quant.targets.files.alpha_record import pack_alpha_record
from lora_quant.targets.files.pack_folder import PackFolder
from lora_quant.targets.qairt.genie_block import genie_text
from lora_quant.targets.qairt.lora_config_text import LORA_CONFIG_TEXT

GENIE_LORA = "genie_lora.json"
QNN_LORA_CONFIG = "qnn_lora_config.txt"


def write_device_configs(compilation: Compilation, folder: PackFolder, target: str) -> None:
    """`<target>/genie_lora.json`, and `<target>/<use case>/qnn_lora_config.txt` for each.

    Raises PackError if a file cannot be written.
    """
    alpha = pack_alpha_record(compilation)
    if alpha is None and compilation.given is None:
        return
    slots: SlotTable = compilation.having("slots")
    if alpha is not None:
        folder.write_text(f"{target}/{GENIE_LORA}", "genie-lora", genie_text(alpha, slots))
    for name in slots.use_cases:
        path = f"{target}/{name}/{QNN_LORA_CONFIG}"
        folder.write_text(path, "qnn-lora-config", LORA_CONFIG_TEXT, name)
