"""Which module a path can mean when leading levels differ."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.graph.attach.name_table import NameTable, flat_name, same_module

WORDS = st.sampled_from(["model", "layers", "self_attn", "mlp", "q_proj", "encoder", "text"])
LEVELS = st.one_of(WORDS, st.integers(0, 12).map(str))
PATHS = st.lists(LEVELS, min_size=1, max_size=6).map(".".join)
PREFIXES = st.lists(st.sampled_from(["base", "wrapper", "inner"]), min_size=1, max_size=3)
Q0 = "model.layers.0.self_attn.q_proj"


@given(st.sets(PATHS, min_size=1))
def test_a_module_finds_itself(paths: set[str]) -> None:
    table = NameTable(paths)
    for path in paths:
        assert table.find(path) == (path,)


@given(PATHS, PREFIXES)
def test_leading_levels_without_numbers_may_be_missing_on_either_side(
    path: str, prefix: list[str]
) -> None:
    longer = ".".join([*prefix, path])
    assert NameTable([path]).find(longer) == (path,)
    assert NameTable([longer]).find(path) == (longer,)


@given(PATHS, st.integers(0, 99), st.integers(0, 99))
def test_a_number_in_the_part_that_differs_never_matches(path: str, one: int, other: int) -> None:
    first, second = f"layers.{one}.x.{path}", f"layers.{other}.x.{path}"
    assert same_module(first, second) == (one == other)
    assert not same_module(first, f"x.{path}")


@given(st.lists(PATHS, min_size=1, max_size=5, unique=True), PATHS)
def test_what_is_found_is_the_same_module(paths: list[str], wanted: str) -> None:
    for found in NameTable(paths).find(wanted):
        assert found in paths
        assert same_module(found, wanted)


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("layers.0.self_attn.q_proj", Q0),
        (Q0, "base_model.model.model.layers.0.self_attn.q_proj"),
        ("language_model.model.layers.0.q", "model.language_model.layers.0.q"),
        ("model.layers.0.q", "model.language_model.layers.0.q"),
        ("model.layers.0.attn.q_proj", Q0),
        (Q0, "layers.0.attn.q_proj"),
        ("model_layers_0_self_attn_q_proj", Q0),
        ("model_layers_0_self_attn_q_proj_Conv", Q0),
        ("model_layers_0_self_attn_q_proj_MatMul_3", "layers.0.self_attn.q_proj"),
        ("layers_0_self_attn_q_proj", "language_model.model.layers.0.self_attn.q_proj"),
        ("language_model_layers_0_q", "language_model.layers.0.q"),
        ("lm_head_Conv", "lm_head"),
        ("lm_head_Conv", "model.lm_head"),
    ],
)
def test_spellings_of_one_module(path: str, wanted: str) -> None:
    assert NameTable([path, "model.layers.7.other"]).find(wanted) == (path,)


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("encoder.layers.0.q", "decoder.layers.0.q"),
        ("vision.model.layers.0.q", "text.model.layers.0.q"),
        ("model.layers.1.q", "model.layers.0.q"),
        ("model.layers.10.q", "model.layers.1.q"),
        ("model.layers.0.q", "q"),
        ("out_proj_Conv", "proj"),
        ("encoder_layers_0_q", "decoder.layers.0.q"),
        ("layers_1_q", "layers.0.1.q"),
        ("model.layers.0.q", "model.layers.0.q.lora"),
    ],
)
def test_different_modules(path: str, wanted: str) -> None:
    assert NameTable([path]).find(wanted) == ()


def test_the_longest_suffix_wins() -> None:
    table = NameTable(["proj", "head.proj", "other.proj"])
    assert table.find("model.head.proj") == ("head.proj",)
    assert table.find("proj") == ("proj",)


def test_an_ambiguous_module_finds_all() -> None:
    table = NameTable(["encoder.out", "decoder.out"])
    assert table.find("out") == ("decoder.out", "encoder.out")


UNET = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q"


@given(st.lists(PATHS, min_size=1, max_size=5, unique=True), st.data())
def test_a_path_whose_levels_are_joined_finds_it(paths: list[str], data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(paths))
    table = NameTable(paths)
    found = table.find(path.replace(".", "_"))
    assert path in found
    # Others only where the joined names are the same, as of `a.b_c` and `a_b.c`.
    if "." in path:
        assert all(p.replace(".", "_") == path.replace(".", "_") for p in found if p != path)


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        (UNET, UNET.replace(".", "_")),
        (f"unet.{UNET}", UNET.replace(".", "_")),
        (UNET, f"unet_{UNET}".replace(".", "_")),
        ("text_model.encoder.layers.0.mlp.fc1", "encoder_layers_0_mlp_fc1"),
        ("encoder.layers.0.mlp.fc1", "text_model_encoder_layers_0_mlp_fc1"),
        ("time_embedding.linear_1", "time_embedding_linear_1"),
        ("net.proj.out", "proj_out"),
    ],
)
def test_names_whose_dots_were_lost(path: str, wanted: str) -> None:
    assert NameTable([path, "model.layers.7.other"]).find(wanted) == (path,)
    assert same_module(path, wanted)
    assert same_module(wanted, path)


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        (UNET, UNET.replace(".", "_").replace("attentions_1", "attentions_2")),
        (UNET, "blocks_0_attn1_to_q"),
        (UNET, "to_q_x"),
        ("blocks.1.fc.in", "fc_in"),
        ("decoder.layers.0.fc", "encoder_layers_0_fc"),
        ("in.proj", "out_in_proj"),
    ],
)
def test_names_whose_dots_were_lost_of_other_modules(path: str, wanted: str) -> None:
    assert NameTable([path]).find(wanted) == ()


def test_a_joined_name_of_two_paths_finds_both() -> None:
    assert NameTable(["a.b_c.d", "a_b.c.d"]).find("a_b_c_d") == ("a.b_c.d", "a_b.c.d")
    assert NameTable(["a.b.c", "x.a.b.c"]).find("a_b_c") == ("a.b.c",)


def test_flat_names_of_nodes() -> None:
    assert flat_name("model_layers_0_q_proj_Conv_2") == "model_layers_0_q_proj"
    assert flat_name("lm_head_MatMul") == "lm_head"
    # Generated names, which tell no module.
    assert flat_name("node_MatMul_12") is None
    assert flat_name("MatMul_12") is None
    assert flat_name("q_proj") is None
