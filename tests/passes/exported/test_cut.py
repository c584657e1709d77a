"""The ranks of one module's branches, cut into the factors of adapters."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from lora_quant.errors import AdapterError
from lora_quant.graph.exported.records import FoundBranch
from lora_quant.passes.exported.cut import Cut
from lora_quant.passes.exported.decide import Decision
from lora_quant.passes.exported.factors import Factors
from lora_quant.passes.exported.rank_fit import Fit
from lora_quant.passes.exported.records import AdapterRanks
from lora_quant.passes.exported.refusals import Place

RANK, INPUTS, OUTPUTS = 4, 3, 6
A: NDArray[Any] = np.arange(RANK * INPUTS, dtype=np.float32).reshape(RANK, INPUTS)


def cut(b: NDArray[Any], *ranks: AdapterRanks) -> Cut:
    branch = cast(FoundBranch, SimpleNamespace(rank=RANK))
    place = Place(Path("use_case.onnx"), "both", "net.fc")
    return Cut(place, (branch,), [Factors(A, b)], Decision(Fit((ranks,), {})))


def test_every_adapter_gets_its_rows_of_a_and_its_columns_of_b() -> None:
    b = np.arange(OUTPUTS * RANK, dtype=np.float32).reshape(OUTPUTS, RANK)
    parts = dict(cut(b, AdapterRanks("legal", 1, 3), AdapterRanks("tone", 0, 1)).parts())
    assert list(parts) == ["legal", "tone"]
    np.testing.assert_array_equal(parts["legal"].a, A[1:4])
    np.testing.assert_array_equal(parts["legal"].b, b[:, 1:4])
    np.testing.assert_array_equal(parts["tone"].a, A[:1])
    np.testing.assert_array_equal(parts["tone"].b, b[:, :1])


def test_a_grouped_b_goes_to_one_adapter_as_a_whole() -> None:
    """Of two groups, each column of the stored B stands for two ranks."""
    b = np.ones((OUTPUTS, RANK // 2), np.float32)
    ((name, part),) = cut(b, AdapterRanks("tone", 0, RANK)).parts()
    assert name == "tone"
    assert part.a is A
    assert part.b is b


def test_a_grouped_b_is_not_cut() -> None:
    b = np.ones((OUTPUTS, RANK // 2), np.float32)
    with pytest.raises(AdapterError, match=r"B of module 'net\.fc' is grouped and") as caught:
        list(cut(b, AdapterRanks("tone", 0, RANK - 1)).parts())
    assert (caught.value.where.adapter, caught.value.where.use_case) == ("tone", "both")
