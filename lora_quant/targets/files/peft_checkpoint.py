"""A plain LoRA checkpoint as PEFT saves it, and as PEFT, vLLM, diffusers and others load it.

adapter_config.json          r is the rank that most modules have, lora_alpha = r
                             rank_pattern, alpha_pattern: modules of another rank, alpha = rank
adapter_model.safetensors    base_model.model.<module>.lora_A.weight, lora_B.weight

Every scale is lora_alpha / r = 1, also for readers that know no patterns: scales are in B. A
pattern is `^`, the escaped path of one module: PEFT matches it from the start of the path. A and B
are float32. If any module has a bias, lora_B has one everywhere (zeros elsewhere), as PEFT wants.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.files.checkpoint import WEIGHTS_FILE
from lora_quant.adapters.files.peft_config import CONFIG_FILE
from lora_quant.adapters.plain.plain_lora import PlainPair, PlainShape
from lora_quant.adapters.plain.plain_parameters import StoredParameter
from lora_quant.config.documents import dump_json
from lora_quant.graph.records import TensorRecord
from lora_quant.targets.files.pack_folder import PackFolder
from lora_quant.targets.files.safetensors_writer import write_safetensors

PREFIX = "base_model.model."
FILES = frozenset({CONFIG_FILE, WEIGHTS_FILE})
_FLOAT32 = "float32"


@dataclass(frozen=True, eq=False)
class PlainLora:
    """Everything that the checkpoint says, but for the values.

    `fields` are fields of the configuration beside those that follow from the modules.
    """

    modules: Mapping[str, PlainShape]
    has_bias: bool
    parameters: Mapping[str, StoredParameter]
    fields: Mapping[str, Any]


def write_peft_checkpoint(
    folder: PackFolder,
    lora: PlainLora,
    pair: Callable[[str], PlainPair],
    parameter: Callable[[str], NDArray[np.generic]],
) -> None:
    """Write both files; values are asked for when it is their turn, and not kept.

    `pair` takes a module, `parameter` a key of `lora.parameters`. Raises PackError if something
    cannot be written, and what the two raise.
    """
    folder.write_text(CONFIG_FILE, "config", dump_json(_config(lora)))
    with folder.create(WEIGHTS_FILE, "weights") as sink:
        write_safetensors(sink, list(_records(lora)), _tensors(lora, pair, parameter))


def _config(lora: PlainLora) -> dict[str, Any]:
    ranks = Counter(shape.rank for shape in lora.modules.values())
    # of two that are equally common, the larger: some readers reserve memory by r alone
    rank = max(ranks, key=lambda r: (ranks[r], r))
    pattern = {
        f"^{re.escape(module)}": shape.rank
        for module, shape in lora.modules.items()
        if shape.rank != rank
    }
    own = {
        "alpha_pattern": pattern,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": rank,
        "lora_bias": lora.has_bias,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": pattern,
        "target_modules": list(lora.modules),
        "use_dora": False,
        "use_rslora": False,
    }
    return dict(sorted({**lora.fields, **own}.items()))


def _names(module: str, shape: PlainShape) -> tuple[str, str, str]:
    stem = f"{PREFIX}{module}"
    if shape.is_embedding:
        return f"{stem}.lora_embedding_A", f"{stem}.lora_embedding_B", ""
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight", f"{stem}.lora_B.bias"


def _records(lora: PlainLora) -> Iterator[TensorRecord]:
    for module, shape in lora.modules.items():
        a, b, bias = _names(module, shape)
        yield TensorRecord(a, (shape.rank, shape.in_features, *shape.kernel), _FLOAT32)
        yield TensorRecord(b, _shape_of_b(shape), _FLOAT32)
        if lora.has_bias:
            yield TensorRecord(bias, (shape.out_features,), _FLOAT32)
    for stored in lora.parameters.values():
        yield TensorRecord(f"{PREFIX}{stored.name}", stored.shape, stored.dtype)


def _shape_of_b(shape: PlainShape) -> tuple[int, ...]:
    return shape.out_features, shape.rank // shape.groups, *(1 for _ in shape.kernel)


def _tensors(
    lora: PlainLora,
    pair: Callable[[str], PlainPair],
    parameter: Callable[[str], NDArray[np.generic]],
) -> Iterator[tuple[str, NDArray[np.generic]]]:
    for module, shape in lora.modules.items():
        a, b, bias = _names(module, shape)
        values = pair(module)
        yield a, values.A
        yield b, values.B.reshape(_shape_of_b(shape))
        if lora.has_bias:
            yield bias, np.zeros(shape.out_features, np.float32) if values.c is None else values.c
    for key, stored in lora.parameters.items():
        yield f"{PREFIX}{stored.name}", parameter(key).astype(stored.dtype)
