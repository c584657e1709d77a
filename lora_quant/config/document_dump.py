"""Writing values as JSON and YAML text: the same value gives the same bytes."""

from __future__ import annotations

import json
from typing import Any, Final

import yaml

from lora_quant.config.located import path_text
from lora_quant.config.plain_values import find_fault
from lora_quant.config.yaml_scalars import is_plain_text
from lora_quant.errors import ConfigError, Where

_TEXT_TAG: Final = "tag:yaml.org,2002:str"


def dump_json(value: Any, *, indent: int | None = 2) -> str:
    """`value` as JSON with a final line break; keys keep their order.

    `indent=None` gives one compact line, which is many times faster to write: meant for encodings.
    """
    _refuse_faults(value)
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"


def dump_yaml(value: Any) -> str:
    """`value` as block-style YAML; keys keep their order, there are no aliases, tags or wraps.

    Text is quoted wherever YAML 1.1 or 1.2 would take it for something else.
    """
    _refuse_faults(value)
    text: str = yaml.dump(
        value,
        Dumper=_Dumper,
        allow_unicode=True,
        default_flow_style=False,
        sort_keys=False,
        width=2**31,
    )
    return text


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  (the interface of PyYAML)
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        super().increase_indent(flow, False)


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # Double quotes escape what the other styles would fold, strip or refuse.
    plain = is_plain_text(text) and text.isprintable()
    return dumper.represent_scalar(_TEXT_TAG, text, style=None if plain else '"')


_Dumper.add_representer(str, _represent_text)


def _refuse_faults(value: Any) -> None:
    fault = find_fault(value)
    if fault is not None:
        raise ConfigError(
            f"the value cannot be written: {fault.problem}",
            where=Where(field=path_text(fault.path) or None),
            hint="a document holds null, bools, finite numbers, text, lists and text-keyed objects",
        )
