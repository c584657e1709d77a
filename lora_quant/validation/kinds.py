"""What a file can be, and the schema that says what it must look like."""

from __future__ import annotations

from enum import Enum


class Kind(Enum):
    """The kinds of files that are checked; a value is what a person calls the file."""

    LORA_CONFIG = "lora_config.yaml"
    ADAPTER_PARAMS = "adapter JSON"
    PEFT_CONFIG = "PEFT adapter_config.json"
    ATTACH_POINTS = "attach point mapping"
    ENCODINGS_0_6_1 = "AIMET encodings 0.6.1"
    ENCODINGS_1_0_0 = "AIMET encodings 1.0.0"
    ENCODINGS_2_0_0 = "AIMET encodings 2.0.0"
    ENCODINGS_FRAGMENT = "AIMET encodings fragment"
    ENCODINGS_OTHER = "AIMET encodings of another version"
    IMPORTER_CONFIG = "lora_importer_config.yaml"
    OUTPUT_FILES = "lora_output_files.yaml"
    RUN_CONFIG = "run config"
    MANIFEST = "pack.json"
    PACK = "pack"
    REPORT = "report"
    ADAPTER_FILE = "ONNX Runtime adapter"
    GENIE_LORA = "lora block of Genie"
    GENIE_CONFIG = "Genie configuration"
    QNN_LORA_CONFIG = "lora_config text of the QNN provider"
    ADAPTER = "adapter"
    WEIGHTS = "weights"
    TENSOR_LIST = "list of tensors"
    GRAPH = "ONNX graph"
    JSON_SCHEMA = "JSON schema"


ENCODINGS = frozenset(
    {
        Kind.ENCODINGS_0_6_1,
        Kind.ENCODINGS_1_0_0,
        Kind.ENCODINGS_2_0_0,
        Kind.ENCODINGS_FRAGMENT,
        Kind.ENCODINGS_OTHER,
    }
)

GENIE = frozenset({Kind.GENIE_LORA, Kind.GENIE_CONFIG})

SCHEMA_NAMES = {
    Kind.LORA_CONFIG: "lora-config",
    Kind.ADAPTER_PARAMS: "adapter-params",
    Kind.PEFT_CONFIG: "peft-adapter-config",
    Kind.ATTACH_POINTS: "attach-points",
    Kind.ENCODINGS_0_6_1: "aimet-encodings-0.6.1",
    Kind.ENCODINGS_1_0_0: "aimet-encodings-1.0.0",
    Kind.ENCODINGS_2_0_0: "aimet-encodings-2.0.0",
    Kind.ENCODINGS_FRAGMENT: "aimet-encodings-fragment",
    Kind.IMPORTER_CONFIG: "importer-config",
    Kind.OUTPUT_FILES: "output-files",
    Kind.RUN_CONFIG: "run-config",
    Kind.MANIFEST: "pack",
    Kind.REPORT: "report",
    Kind.GENIE_LORA: "genie-lora",
    Kind.GENIE_CONFIG: "genie-config",
}
"""Kind -> name of its schema. A fragment's is derived from 1.0.0 (see schema_check)."""
