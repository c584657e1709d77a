"""Rules `schema/<name of the schema>`: a document against the JSON schema of its kind."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.kinds import SCHEMA_NAMES
from lora_quant.validation.rule import Level, Rule

_OURS = (
    "A build, or the tool that the file is for, would refuse it, or run without what was meant: "
    "a key that is spelt wrong is a key that is not given."
)
_CONSEQUENCES = {
    "lora-config": _OURS,
    "adapter-params": "The file says rank, alpha and targets of an adapter. With a wrong one the "
    "scale alpha / rank, and so the strength of the adapter, is wrong.",
    "peft-adapter-config": "PEFT would refuse the adapter, or take a default in place of the value "
    "that was trained with.",
    "attach-points": "Modules are looked up in this mapping. An adapter whose module has no list "
    "of node names cannot be placed.",
    "aimet-encodings-0.6.1": "The converter reads one list of entries for each tensor. What it "
    "cannot read it quantizes with ranges of its own, or computes in float.",
    "aimet-encodings-1.0.0": "The converter reads one object for each tensor. What it cannot read "
    "it quantizes with ranges of its own, or computes in float.",
    "aimet-encodings-2.0.0": "Scales and zero points are read by dtype and axis. What cannot be "
    "read is quantized with other ranges, or computed in float.",
    "aimet-encodings-fragment": "A fragment is laid over the base's encodings. An entry that "
    "cannot be read leaves the tensor with the base's range.",
    "importer-config": "The tool qairt-lora-importer reads this file. It stops, or imports a "
    "use case without its weights or encodings.",
    "output-files": "The tool qnn-context-binary-generator reads this file. It stops, or writes "
    "no section for a use case.",
    "run-config": "The application chooses use case and strengths by this file. With a wrong one "
    "the model answers with other strengths, or with none.",
    "pack": "The manifest says what belongs to a pack. Without a sound one no file of the pack can "
    "be trusted, and nothing else of it is checked.",
    "report": "Programs that read reports would meet values that they do not expect.",
    "genie-lora": "Genie refuses the configuration when the application starts.",
    "genie-config": "Genie refuses the configuration when the application starts.",
}

JSON_SCHEMA = Rule(
    "schema/json-schema",
    Level.SCHEMA,
    Severity.ERROR,
    "a JSON schema is not one by its own dialect",
    "Editors and validators that load the schema stop, or check nothing with it.",
    "Correct the place that is named; schemas of ours come from `lora-quant schema`.",
)

RULES = (
    JSON_SCHEMA,
    *(
        Rule(
            f"schema/{name}",
            Level.SCHEMA,
            Severity.ERROR,
            f"the file does not follow the schema {name}",
            _CONSEQUENCES[name],
            f"Correct the place that is named. `lora-quant schema {name}` prints the schema, which "
            "editors can check while you type.",
        )
        for name in sorted(SCHEMA_NAMES.values())
    ),
)
