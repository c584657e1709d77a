"""One adapter file of a pack that is being checked, with the inputs that it may replace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from lora_quant.config.manifest_records import OverridableRecord, PackFile, TargetRecord
from lora_quant.findings import Finding
from lora_quant.validation.files.adapter_file import AdapterFile, AdapterParameter
from lora_quant.validation.pack.view import PackView

REBUILD = "build the pack again"
OTHER_BUILD = "adapter and manifest come from different builds"


@dataclass(frozen=True, eq=False)
class AdapterView:
    """`adapter` is what was read of `file`, which belongs to `target`."""

    view: PackView
    target: TargetRecord
    file: PackFile
    adapter: AdapterFile

    @cached_property
    def records(self) -> Mapping[str, OverridableRecord]:
        """The inputs that may be replaced, by name."""
        return {record.name: record for record in self.target.inputs}

    @cached_property
    def found(self) -> Mapping[str, AdapterParameter]:
        """The tensors of the file, by name."""
        return {parameter.name: parameter for parameter in self.adapter.parameters}

    def error(
        self, rule: str, message: str, *, tensor: str | None = None, hint: str = OTHER_BUILD
    ) -> Finding:
        """An error `pack/adapter-<rule>` in the file."""
        return self.view.error(
            f"adapter-{rule}",
            message,
            self.file.path,
            hint=hint,
            use_case=self.file.use_case,
            tensor=tensor,
        )
