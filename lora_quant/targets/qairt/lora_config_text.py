"""`qnn_lora_config.txt` of a use case, for the run option `qnn.lora_config` of the QNN provider.

Neither of its two parts is known before the device compiler has run: both are placeholders.
"""

from __future__ import annotations

from typing import Final

from lora_quant.config.placeholders import placeholder
from lora_quant.config.qnn_lora_config import QnnLoraConfig

LORA_CONFIG_TEXT: Final = QnnLoraConfig(
    graph=placeholder("name of the graph in the context binary"),
    section=placeholder("path of this use case's section of that graph"),
).dump()
