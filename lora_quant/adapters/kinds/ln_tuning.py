"""LN_TUNING: weights and biases of norms, trained as they are.

<norm>.ln_tuning_layers.weight        replaces  <norm>.weight
"""

from __future__ import annotations

from typing import ClassVar

from lora_quant.adapters.description import Description
from lora_quant.adapters.files.checkpoint import Checkpoint
from lora_quant.adapters.frame.fields import check_fields
from lora_quant.adapters.frame.key_table import read_keys
from lora_quant.adapters.frame.module_match import check_targets, read_targets
from lora_quant.adapters.frame.replaced_parameters import parameter_shape, replaced_parameters
from lora_quant.adapters.kinds.without_modules import WithoutModules

_LAYERS = "ln_tuning_layers"


class LnTuningRule(WithoutModules):
    """Parameters of the named modules are replaced."""

    kind: ClassVar[str] = "LN_TUNING"

    def describe(self, checkpoint: Checkpoint) -> Description:
        """See LoweringRule."""
        config, source = checkpoint.config, checkpoint.tensors
        check_fields(config, (), {})
        keys = read_keys(source, (f"{_LAYERS}.weight", f"{_LAYERS}.bias"))
        findings = check_targets(read_targets(config), config, keys.modules)
        parameters = replaced_parameters(keys.others, config, source, ())
        for module, tensors in keys.modules.items():
            for name, tensor in tensors.items():
                parameter = f"{module}.{name.removeprefix(f'{_LAYERS}.')}"
                parameters[parameter] = parameter_shape(parameter, tensor, source)
        return Description(parameters=parameters, findings=findings)
