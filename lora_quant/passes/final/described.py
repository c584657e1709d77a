"""What the manifest tells of an adapter whose values are in the graphs of use cases alone."""

from __future__ import annotations

import math
from collections import Counter

from lora_quant import plugins
from lora_quant.adapters.adapter import load_adapter
from lora_quant.adapters.files.peft_config import read_peft_config
from lora_quant.passes.adapter_sources import AdapterSources
from lora_quant.passes.final.records import DescribedAdapter

_FORMAT = "onnx"
_KIND = "LORA"


def described(sources: AdapterSources) -> DescribedAdapter:
    """By its descriptions, else by its configuration or checkpoint.

    Raises ConfigError or AdapterError for one that is not accepted.
    """
    if sources.declared:
        params = [one.params for one in sources.declared]
        scales = Counter(float(one.alpha) / one.rank for one in params)
        files = (one.file for one in sources.declared)
        return DescribedAdapter(
            name=sources.name,
            kind=_KIND,
            format=_FORMAT,
            rank=max(one.rank for one in params),
            scale=scales.most_common(1)[0][0],
            files=tuple(file for file in files if file is not None),
        )
    if sources.config is not None:
        config = read_peft_config(sources.config)
        rank = config.positive("r", 8)
        scale = config.number("lora_alpha", 8.0)
        scale /= math.sqrt(rank) if config.flag("use_rslora") else rank
        return DescribedAdapter(
            sources.name, config.peft_type, _FORMAT, rank, scale, (sources.config,)
        )
    if sources.checkpoint is None:
        raise TypeError(f"adapter {sources.name!r} has no sources")
    adapter = load_adapter(
        sources.name,
        sources.checkpoint,
        plugins.Instances(plugins.LOWERING_RULES),
        task=sources.entry.task_id,
    )
    checkpoint = adapter.checkpoint
    return DescribedAdapter(
        name=sources.name,
        kind=checkpoint.config.peft_type,
        format=checkpoint.format,
        rank=adapter.rank,
        scale=adapter.scale,
        files=tuple(dict.fromkeys((checkpoint.config.file, checkpoint.tensors.path))),
    )
