"""Modules that read the base or have no low rank: lowered once, approximated within a limit.

Outputs are compared with PEFT's as in test_kinds_compiled, where an approximation has full rank.
"""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file

from lora_quant.adapters.lowered import Lowered, ModuleShape
from lora_quant.adapters.lowered_store import LoweredStore
from lora_quant.api import BuildResult
from lora_quant.config.lora_config import LoraConfig
from lora_quant.config.options import BuildOptions
from lora_quant.errors import AdapterError, ConfigError, PackError, UnsupportedAdapterError
from lora_quant.findings import Severity
from lora_quant.graph.attach.resolver import ModuleSizes
from lora_quant.graph.base.base_graph import open_base
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.grouped import is_per_group, spread, spread_shape
from lora_quant.passes.lower_with_base import LowerWithBase
from lora_quant.passes.runner import default_passes, run_passes
from tests.mixes import KINDS, graph_of, mixed, outputs
from tests.run_graph import largest

Array = NDArray[Any]
RELATIVE = 1e-5
CASES: dict[str, dict[str, Any]] = json.loads((KINDS / "cases.json").read_text(encoding="utf-8"))
# Refused: what PEFT computed is not in the file, or its forward and its merge differ.
REFUSED = frozenset({"frod_seeded", "oft_conv"})
DENSE = sorted(
    name for name, case in CASES.items() if case.get("class") == "dense" and name not in REFUSED
)


def oracle(case: str) -> tuple[dict[str, Array], dict[str, Array]]:
    expected = load_file(KINDS / case / "expected.safetensors")
    if "input_ids" in expected:
        return {"input_ids": expected["input_ids"].astype(np.int64)}, expected
    return {"x": expected["x"]}, expected


def approximated(folder: Path, case: str, rank: int, limit: float) -> BuildResult:
    options: dict[str, Any] = {
        "approximate": True,
        "approximate_rank": rank,
        "max_error": limit,
    }
    graph = graph_of(CASES[case]["base"])
    return mixed(folder / "pack", graph, {"it": {case: 1.0}}, **options)


def error_of(result: BuildResult) -> float:
    (record,) = result.manifest.adapters
    assert record.max_error is not None
    return record.max_error


@pytest.mark.parametrize("case", DENSE)
def test_at_full_rank_an_approximation_is_pefts_model(case: str, tmp_path: Path) -> None:
    """Every layer of the small models has fewer than 150 inputs or outputs."""
    inputs, expected = oracle(case)
    theirs = expected["logits" if "logits" in expected else "y"]
    result = approximated(tmp_path, case, 150, 0.0)
    allowed = RELATIVE * float(np.abs(theirs).max())
    assert largest(outputs(result, "it", inputs), theirs) <= allowed
    assert error_of(result) == 0.0
    assert largest(outputs(result, "base", inputs), theirs) >= 1e3 * allowed


def singular_error(delta: Array, rank: int) -> float:
    """What the best rank leaves, as a part of the Frobenius norm."""
    values = np.linalg.svd(delta.reshape(len(delta), -1).astype(np.float64), compute_uv=False)
    return float(np.sqrt((values[rank:] ** 2).sum() / (values**2).sum()))


def test_findings_tell_the_error_of_every_layer(tmp_path: Path) -> None:
    """PEFT's deltas are differences of float32 weights: off by about 1e-6; 3 digits are printed."""
    case, rank = "c3a", 4
    _, expected = oracle(case)
    result = approximated(tmp_path, case, rank, 0.9)
    found = {f.where.module: f for f in result.findings if f.rule == "adapter/approximated"}
    deltas = {key.partition(":")[2]: v for key, v in expected.items() if key[:6] == "delta:"}
    assert set(found) == set(deltas)
    worst = 0.0
    for module, delta in deltas.items():
        finding = found[module]
        error = singular_error(delta, rank)
        worst = max(worst, error)
        assert finding.severity is Severity.WARNING
        match = re.fullmatch(
            rf"module '{re.escape(module)}' is approximated by rank 4, with a relative "
            r"Frobenius error of (0\.\d+)",
            finding.message,
        )
        assert match is not None
        # three digits are printed
        assert abs(float(match[1]) - error) <= 0.5e-3 + 1e-5
        assert finding.where.adapter == case
        assert finding.hint == "measure the quality of the model; --merge is exact"
    assert abs(error_of(result) - worst) <= 1e-5


def test_the_compiled_layers_are_the_best_of_their_rank(tmp_path: Path) -> None:
    case, rank = "hira_linear", 3
    _, expected = oracle(case)
    result = approximated(tmp_path, case, rank, 0.99)
    weights = load_file(result.output / "qairt" / "it" / "lora_weights.safetensors")
    deltas = {key.partition(":")[2]: v for key, v in expected.items() if key[:6] == "delta:"}
    for module, delta in deltas.items():
        a, b = (
            next(v for n, v in weights.items() if n.endswith(f"{module}.lora_{letter}.weight"))
            for letter in "AB"
        )
        made = (a.astype(np.float64) @ b.astype(np.float64)).T
        left = np.linalg.norm(made - delta) / np.linalg.norm(delta)
        assert abs(left - singular_error(delta, rank)) <= 1e-5


@pytest.mark.parametrize("limit", [0.5, 0.05, 0.0])
def test_an_error_above_the_limit_names_the_rank_that_is_needed(
    limit: float, tmp_path: Path
) -> None:
    case = "hira_linear"
    with pytest.raises(AdapterError) as caught:
        approximated(tmp_path, case, 1, limit)
    error = caught.value
    match = re.fullmatch(
        rf"rank 1 leaves a relative error of (0\.\d+), more than --max-error {limit:g}",
        error.message,
    )
    assert match is not None
    module = error.where.module
    assert (error.where.adapter, module is not None) == (case, True)
    _, expected = oracle(case)
    delta = expected[f"delta:{module}"]
    assert abs(float(match[1]) - singular_error(delta, 1)) <= 0.5e-3 + 1e-5
    assert error.hint is not None
    needed = re.match(
        r"the layers of this adapter need rank (\d+): give it with --approximate-rank", error.hint
    )
    assert needed is not None
    rank = int(needed[1])
    deltas = [values for key, values in expected.items() if key.startswith("delta:")]
    assert len(deltas) > 1
    if limit:
        assert max(singular_error(one, rank) for one in deltas) <= limit
        assert max(singular_error(one, rank - 1) for one in deltas) > limit
    else:
        assert rank == max(min(one.shape) for one in deltas)
    assert not (tmp_path / "pack").exists()


def test_the_error_is_compared_with_the_limit_and_not_beside_it(tmp_path: Path) -> None:
    result = approximated(tmp_path, "c3a", 4, 0.9)
    worst = error_of(result)
    again = tmp_path / "again"
    again.mkdir()
    assert error_of(approximated(again, "c3a", 4, worst)) == worst
    with pytest.raises(AdapterError, match="more than --max-error"):
        approximated(tmp_path / "third", "c3a", 4, float(np.nextafter(worst, 0)))


def test_an_exact_adapter_beside_an_approximated_one_stays_exact(tmp_path: Path) -> None:
    options: dict[str, Any] = {"approximate": True, "approximate_rank": 4, "max_error": 0.9}
    given = {"one": {"c3a": 1.0}, "two": {"lora_plain": 1.0}, "both": {"c3a": 0.5, "lora_plain": 1}}
    result = mixed(tmp_path / "pack", graph_of("llama"), given, **options)
    errors = {record.name: record.max_error for record in result.manifest.adapters}
    assert errors["lora_plain"] is None
    assert errors["c3a"] is not None
    inputs, expected = oracle("lora_plain")
    theirs = expected["logits"]
    allowed = RELATIVE * float(np.abs(theirs).max())
    assert largest(outputs(result, "two", inputs), theirs) <= allowed


def test_without_a_word_a_dense_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedAdapterError) as caught:
        mixed(tmp_path / "pack", graph_of("llama"), {"it": {"c3a": 1.0}})
    error = caught.value
    assert error.message == (
        "adapter 'c3a' is of kind C3A, whose update has no low rank in 6 of its 6 modules"
    )
    assert error.hint is not None
    assert "--merge" in error.hint
    assert "--approximate --max-error" in error.hint


@pytest.mark.parametrize(
    "options", [{"approximate": True}, {"max_error": 0.1}, {"approximate": True, "max_error": 1.0}]
)
def test_an_approximation_needs_both_words(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        mixed(tmp_path / "pack", graph_of("llama"), {"it": {"c3a": 1.0}}, **options)


def compilation(case: str, **options: Any) -> Compilation:
    """The state before lower-with-base."""
    graph = graph_of(CASES[case]["base"])
    config = LoraConfig.model_validate(
        {
            "adapter": [{"name": "it", "lora_config": str(KINDS / case)}],
            "use-case": [
                {
                    "name": "it",
                    "adapter_names": ["it"],
                    "adapter_alphas": [1.0],
                    "model_name": str(graph),
                }
            ],
        }
    )
    start = Compilation(config=config, options=BuildOptions(**options), base=open_base(graph))
    return run_passes(start, default_passes(["lower-adapters", "resolve-attach-points"]))


@pytest.mark.parametrize("case", ["lora_dora", "hra_linear", "miss_std", "loha_conv_grouped"])
def test_what_reads_the_base_is_stored_once(case: str) -> None:
    before = compilation(case)
    assert before.adapters is not None
    result = LowerWithBase().run(before)
    assert result.changed
    adapters = result.compilation.adapters
    assert adapters is not None
    adapter = adapters["it"]
    assert adapter.stored is not None
    for module, shape in adapter.shapes.items():
        if module not in adapter.stored:
            continue
        assert not shape.dense
        assert shape.need.value == "nothing"
        first, second = adapter.lower(module), adapter.lower(module)
        assert isinstance(first, Lowered)
        assert isinstance(second, Lowered)
        assert first.rank == shape.rank
        np.testing.assert_array_equal(first.A, second.A)
    again = LowerWithBase().run(result.compilation)
    assert not again.changed
    assert again.compilation is result.compilation


@pytest.mark.parametrize(("case", "options"), [("lora_plain", {}), ("c3a", {"merge": "it"})])
def test_what_needs_nothing_is_left_alone(case: str, options: dict[str, Any]) -> None:
    before = compilation(case, **options)
    result = LowerWithBase().run(before)
    assert not result.changed
    assert result.compilation is before


DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)


@given(
    rank=st.integers(0, 4),
    kernel=st.sampled_from([(), (3,), (1, 2)]),
    dtype=st.sampled_from(DTYPES),
    others=st.sets(st.sampled_from(["g", "h", "c", "router"])),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_stored_module_comes_back_as_it_was(
    rank: int, kernel: tuple[int, ...], dtype: Any, others: set[str], seed: int
) -> None:
    """float64 factors are rounded to float32, which is as much as any graph holds; s is not."""
    rng = np.random.default_rng(seed)
    shapes = {"g": (5,), "h": (3,), "c": (5,), "router": (2, rank)}
    values = {name: rng.normal(size=shapes[name]) for name in others}
    A = rng.normal(size=(rank, 3, *kernel)).astype(dtype)
    B = rng.normal(size=(5, rank)).astype(dtype)
    module = Lowered(A, B, rng.normal(size=rank), **values)
    store = LoweredStore()
    store.put("other", Lowered(B.T, B, rng.normal(size=rank)))
    store.put("fc", module)
    assert "fc" in store
    assert "fc2" not in store
    back = store.get("fc")
    for field in fields(Lowered):
        was, now = getattr(module, field.name), getattr(back, field.name)
        if was is None:
            assert now is None
            continue
        kept = np.float32 if was.dtype == np.float64 and field.name != "s" else was.dtype
        assert now.dtype == kept
        np.testing.assert_array_equal(now, was.astype(kept))


def test_a_module_that_is_stored_again_is_the_last_one() -> None:
    store = LoweredStore()
    for value in (1.0, 2.0):
        factor = np.full((2, 2), value, np.float32)
        store.put("fc", Lowered(factor, factor, np.ones(2)))
    np.testing.assert_array_equal(store.get("fc").A, np.full((2, 2), 2.0))


def test_a_transposed_factor_is_stored_in_its_own_order() -> None:
    factor = np.arange(6, dtype=np.float32).reshape(2, 3)
    store = LoweredStore()
    store.put("fc", Lowered(factor, np.ones((4, 3), np.float32).T[:2].T, np.ones(2)))
    store.put("turned", Lowered(factor.T, factor, np.ones(3)))
    np.testing.assert_array_equal(store.get("turned").A, factor.T)


def test_a_full_disk_is_an_error_of_the_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    store = LoweredStore()

    class Full:
        def seek(self, offset: int) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(store._spill, "_file", Full())
    with pytest.raises(PackError, match="No space left on device") as caught:
        store.put("fc", Lowered(np.ones((1, 1)), np.ones((1, 1)), np.ones(1)))
    assert caught.value.hint is not None
    assert "TMPDIR" in caught.value.hint


@given(
    rank=st.integers(1, 3),
    groups=st.integers(2, 3),
    kernel=st.sampled_from([(), (2,), (1, 3)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_low_rank_within_a_grouped_weight_is_spread_over_the_groups(
    rank: int, groups: int, kernel: tuple[int, ...], seed: int
) -> None:
    """Every output sees the channels of its own group, as the stored weight does, and no others."""
    rng = np.random.default_rng(seed)
    channels, out = 2, 3 * groups
    A = rng.integers(-4, 5, size=(rank, channels, *kernel)).astype(np.float32)
    B = rng.integers(-4, 5, size=(out, rank)).astype(np.float32)
    s = 2.0 ** rng.integers(-1, 2, size=rank)
    sizes = ModuleSizes(channels * groups, out, kernel, groups)
    shape = ModuleShape("fc", rank, channels, out, kernel)
    assert is_per_group(shape, sizes)
    wide = spread(Lowered(A, B, s.astype(np.float64)), sizes)
    told = spread_shape(shape, sizes)
    assert (told.rank, told.groups, told.in_features) == (wide.rank, groups, channels * groups)
    # row o of a grouped B reads the ranks of group o // (out / groups)
    update = np.zeros((out, channels * groups, *kernel))
    for row in range(out):
        first = row // (out // groups) * rank
        ranks = slice(first, first + rank)
        update[row] = np.tensordot(wide.B[row] * wide.s[ranks], wide.A[ranks], axes=1)
    stored = np.tensordot(B * s, A, axes=1)
    for row in range(out):
        group = row // (out // groups)
        own = slice(group * channels, (group + 1) * channels)
        np.testing.assert_array_equal(update[row, own], stored[row])
        assert not np.delete(update[row], np.r_[own], axis=0).any()
