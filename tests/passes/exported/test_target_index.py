"""Which modules an entry of target_modules names: the same as asking for each module."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lora_quant.adapters.frame.module_match import names_module
from lora_quant.passes.exported.target_index import TargetIndex

MODULES = [
    f"model.layers.{layer}.{block}.{leaf}"
    for layer in (0, 1)
    for block, leaves in (("self_attn", ("q_proj", "k_proj")), ("mlp", ("up_proj",)))
    for leaf in leaves
]
LEVELS = st.sampled_from(["model", "layers", "0", "1", "self_attn", "mlp", "q_proj", "up_proj"])
ENTRIES = st.one_of(
    st.lists(LEVELS, min_size=1, max_size=5).map(".".join),
    st.lists(LEVELS, min_size=1, max_size=5).map("_".join).map(lambda joined: f"{joined}_Conv"),
    st.sampled_from(MODULES),
    st.sampled_from(MODULES).map(lambda module: module.replace(".", "_") + "_MatMul"),
)


@given(ENTRIES)
def test_an_entry_names_what_it_names_one_by_one(entry: str) -> None:
    found = {module for module, _ in TargetIndex(MODULES).find(entry)}
    expected = {module for module in MODULES if names_module(entry, module)}
    assert found >= expected
    if expected:
        assert found == expected


def test_more_levels_are_more_specific() -> None:
    index = TargetIndex(MODULES)
    module = "model.layers.0.self_attn.q_proj"
    levels = [
        dict(index.find(entry))[module]
        for entry in ("q_proj", "self_attn.q_proj", "layers.0.self_attn.q_proj", module)
    ]
    assert levels == [1, 2, 4, 5]
    assert index.find("model_layers_0_self_attn_q_proj_Conv") == [(module, 5)]


def test_a_path_with_other_leading_levels_names_the_one_module_that_it_fits() -> None:
    index = TargetIndex(MODULES)
    (found,) = index.find("language_model.model.layers.1.mlp.up_proj")
    assert found == ("model.layers.1.mlp.up_proj", 5)
    assert not index.find("other.layers.7.mlp.up_proj")
    assert not index.find("v_proj")
