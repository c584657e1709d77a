"""Rules about paths of sections, for every area whose files name them."""

from __future__ import annotations

from lora_quant.findings import Severity
from lora_quant.validation.rule import Level, Rule


def section_rules(area: str) -> tuple[Rule, ...]:
    """What may be wrong with the paths of sections in either kind of file."""
    return (
        Rule(
            f"{area}/not-filled-in",
            Level.CROSS_FILE,
            Severity.ERROR,
            "an entry is not filled in yet",
            "A placeholder stands where only the device compiler knows the value. The program that "
            "reads the file looks for a file of that name and stops.",
            "Run `lora-quant fill-in` once the context binaries and sections exist.",
        ),
        Rule(
            f"{area}/section-empty",
            Level.SCHEMA,
            Severity.ERROR,
            "the path of a section is empty",
            "It names no file: the use case could not be switched to.",
            "Write the path of the section that was made for the use case.",
        ),
        Rule(
            f"{area}/section-shared",
            Level.CROSS_FILE,
            Severity.ERROR,
            "two use cases have one section",
            "A section holds the weights of one use case. The second use case would answer with "
            "the adapters of the first.",
            "Name the section that was made for each.",
        ),
        Rule(
            f"{area}/section-backslash",
            Level.DEVICE,
            Severity.WARNING,
            "the path of a section has backslashes",
            "They separate folders on Windows alone. Elsewhere they are a part of the file's name, "
            "and no such file exists.",
            "Use forward slashes.",
        ),
        Rule(
            f"{area}/section-missing",
            Level.CROSS_FILE,
            Severity.ERROR,
            "a section is not where the path says",
            "The program that reads the file cannot load the use case; the QNN provider of ONNX "
            "Runtime ends the process.",
            "Put the section there, or write the absolute path that it has on the device.",
        ),
    )
