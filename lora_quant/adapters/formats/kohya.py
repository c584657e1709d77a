"""kohya and LyCORIS: names whose dots have become underscores, an alpha beside every module.

    lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight
         '--' '------------- flat path ------------' '- parameter -'
    -> unet.down_blocks_0_attentions_0_proj_in.lora_A.weight

The component (`unet`, `te1`, ...) stays as the first level: encoders of one file have modules of
the same flat name. The path stays flat, since which underscores were dots only a model can tell.
LyCORIS' own prefix `lycoris_` names no component: the module is the flat path alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from lora_quant.adapters.files.tensor_source import RenamedTensors, TensorSource
from lora_quant.adapters.formats.contract import Found, Reading
from lora_quant.adapters.formats.lycoris_kinds import KINDS, LycorisModule, kind_of
from lora_quant.adapters.formats.lycoris_refusals import REFUSED, refuse
from lora_quant.errors import UnsupportedAdapterError, Where, some

_NAME = re.compile(
    r"(?:lora_(?P<component>prior_unet|prior_te|unet|te\d?|transformer)|lycoris)_"
    r"(?P<path>[^.]+)\.(?P<parameter>.+)"
)
_PARAMETERS = frozenset({name for kind in KINDS.values() for name in kind.parameters})


@dataclass(frozen=True)
class Kohya:
    """Told by names such as `lora_unet_....lora_down.weight` or `lycoris_....lokr_w1`."""

    name: ClassVar[str] = "kohya"
    signature: ClassVar[str] = "tensors lora_unet_PATH.lora_down.weight or lycoris_PATH.lokr_w1"

    def claims(self, found: Found) -> bool:
        """See CheckpointFormat."""
        return any(
            (match := _NAME.fullmatch(name)) is not None
            and (match["parameter"] in _PARAMETERS or match["parameter"] in REFUSED)
            for name in found.tensors.names
        )

    def read(self, found: Found) -> Reading:
        """See CheckpointFormat."""
        source = found.tensors
        modules = _modules(source)
        kinds: dict[str, list[str]] = {}
        for module in modules.values():
            kinds.setdefault(kind_of(module), []).append(module.name)
        if len(kinds) > 1:
            raise UnsupportedAdapterError(
                "the file mixes kinds of adapters: "
                + ", ".join(f"{kind} in {some(kinds[kind], most=1)}" for kind in sorted(kinds)),
                where=Where(file=source.path),
                hint="train one algorithm for all modules, or split the file by kind and use the "
                "parts together in a use case",
            )
        kind = KINDS[next(iter(kinds))]
        view = {
            f"{module.name}.{name}": derived
            for module in modules.values()
            for name, derived in kind.view(module).items()
        }
        config, findings = kind.config(source.path, modules)
        return Reading(config, RenamedTensors(source, view), findings)


def _modules(source: TensorSource) -> Mapping[str, LycorisModule]:
    """Every module with its parameters; UnsupportedAdapterError for the first foreign tensor."""
    found: dict[str, dict[str, str]] = {}
    for name in source.names:
        match = _NAME.fullmatch(name)
        if match is None:
            raise UnsupportedAdapterError(
                "the tensor's name is not one of kohya's: expected lora_unet_PATH.lora_down.weight "
                "or the like",
                where=Where(file=source.path, tensor=name),
                hint="keep tensors of other formats in a file of their own",
            )
        path = match["path"]
        module = path if match["component"] is None else f"{match['component']}.{path}"
        if match["parameter"] not in _PARAMETERS:
            raise refuse(source.path, module, name, match["parameter"])
        found.setdefault(module, {})[match["parameter"]] = name
    return {module: LycorisModule(module, source, found[module]) for module in sorted(found)}
