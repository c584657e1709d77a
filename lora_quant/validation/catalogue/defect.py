"""Rules about lora-quant itself: a check that failed. They cannot be ignored or deselected."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.rule import Level, Rule

AREA = "defect"

INTERNAL = Rule(
    "defect/internal",
    Level.SCHEMA,
    Severity.ERROR,
    "the check of a file failed by a defect of lora-quant",
    "Whatever a file holds, its check has to end with findings. This one did not, so the file "
    "counts as not checked; all others were. The command ends with code 3 and prints a traceback.",
    "Report it, with the lines that were printed and, if it may be shared, the file.",
)

CRASHED = Rule(
    "defect/crashed",
    Level.SCHEMA,
    Severity.ERROR,
    "the process that checked a file ended without a result",
    "A library crashed, or the system ended the process, most often because memory ran out. The "
    "file counts as not checked; all others were. The command ends with code 3.",
    "Run it again for this file alone with `--jobs 1`, and watch its memory. Report it if it "
    "happens again.",
)

RULES = (INTERNAL, CRASHED)
