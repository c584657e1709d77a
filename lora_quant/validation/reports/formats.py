"""The formats of a validation that machines read, by the name that `--format` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from lora_quant.validation.checked import Validation
from lora_quant.validation.reports.github_report import github_report
from lora_quant.validation.reports.json_report import json_report
from lora_quant.validation.reports.junit_report import junit_report
from lora_quant.validation.reports.sarif_report import sarif_report

FORMATS: Final[Mapping[str, Callable[[Validation], str]]] = MappingProxyType(
    {
        "json": json_report,
        "sarif": sarif_report,
        "github": github_report,
        "junit": junit_report,
    }
)
"""Name -> the report as text that ends with a line break; equal validations give equal text."""
