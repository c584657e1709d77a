"""The adapter-wide scale where every low rank is switched off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_quant.errors import AdapterError
from tests.adapters.builders import PREFIX, Q0, ArrayBase, load, low_rank, pair


@pytest.mark.parametrize(
    ("more", "fields"),
    [
        ({f"{PREFIX}{Q0}.lora_B.bias": np.ones(5, np.float32)}, {"lora_bias": True}),
        ({f"{PREFIX}{Q0}.lora_magnitude_vector": np.ones(5, np.float32)}, {"use_dora": True}),
        ({f"{PREFIX}score.weight": np.ones((2, 3))}, {"modules_to_save": ["score"]}),
    ],
    ids=["vectors", "weight", "parameters"],
)
def test_an_adapter_that_acts_without_low_rank_may_have_a_scale_of_zero(
    tmp_path: Path, more: dict[str, Any], fields: dict[str, Any]
) -> None:
    adapter = load(tmp_path, pair(Q0) | more, lora_alpha=0, **fields)
    assert (adapter.scale, adapter.deviation(Q0)) == (1.0, 0.0)
    base = ArrayBase({Q0: np.ones((5, 6), np.float32)})
    np.testing.assert_array_equal(low_rank(adapter, Q0, base).s / adapter.scale, np.zeros(4))


def test_an_adapter_of_low_rank_alone_may_not(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="the scale of every module is 0: the adapter does noth"):
        load(tmp_path, pair(Q0), lora_alpha=0)
