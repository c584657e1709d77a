"""Every rule of validation, one file per area; `RULES` has them by id.

A rule that a check emits and no file here lists is found by tests/validation/test_catalogue.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from lora_quant.validation.catalogue import (
    adapter,
    adapter_params,
    adapter_reading,
    attach_points,
    config,
    defect,
    device,
    document,
    encodings,
    encodings_merging,
    encodings_of_graph,
    exported,
    genie,
    graph,
    importer,
    lists,
    lists_of_graph,
    pack,
    pack_adapters,
    pack_contents,
    pack_files,
    pack_parts,
    qnn_lora_config,
    recognise,
    run_config,
    schema,
    slots,
    targets,
    updatable,
    weights,
)
from lora_quant.validation.rule import Rule

_AREAS = (
    adapter,
    adapter_params,
    adapter_reading,
    attach_points,
    config,
    defect,
    device,
    document,
    encodings,
    encodings_merging,
    encodings_of_graph,
    exported,
    genie,
    graph,
    importer,
    lists,
    lists_of_graph,
    pack,
    pack_adapters,
    pack_contents,
    pack_files,
    pack_parts,
    qnn_lora_config,
    recognise,
    run_config,
    schema,
    slots,
    targets,
    updatable,
    weights,
)

RULES: Final[Mapping[str, Rule]] = MappingProxyType(
    {rule.id: rule for area in _AREAS for rule in area.RULES}
)
