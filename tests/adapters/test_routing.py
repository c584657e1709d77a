from __future__ import annotations

import pytest

from lora_quant.adapters.frame.routing import Role, RoutedKey, any_number, route_key

PARAMETERS = frozenset({"lora_A", "lora_B", "lora_embedding_A"})


@pytest.mark.parametrize(
    ("key", "module", "suffix", "name"),
    [
        ("base_model.model.m.q.lora_A.weight", "m.q", "lora_A.weight", None),
        ("base_model.model.base_model.model.m.q.lora_A.weight", "m.q", "lora_A.weight", None),
        ("m.q.lora_B.weight", "m.q", "lora_B.weight", None),
        ("base_model.model.m.q.lora_A.default.weight", "m.q", "lora_A.weight", "default"),
        ("m.q.lora_B.tone.bias", "m.q", "lora_B.bias", "tone"),
        ("m.e.lora_embedding_A", "m.e", "lora_embedding_A", None),
        ("m.e.lora_embedding_A.default", "m.e", "lora_embedding_A", "default"),
        ("m.lora_A.q.lora_B.weight", "m.lora_A.q", "lora_B.weight", None),
        ("m.base_layer.out_proj.lora_A.weight", "m.base_layer.out_proj", "lora_A.weight", None),
    ],
)
def test_adapter_tensors(key: str, module: str, suffix: str, name: str | None) -> None:
    assert route_key(key, PARAMETERS) == RoutedKey(key, Role.ADAPTER, module, suffix, name)


@pytest.mark.parametrize(
    ("key", "role", "module"),
    [
        ("base_model.vera_A", Role.SHARED, "vera_A"),
        ("base_model.classifier.weight", Role.SHARED, "classifier.weight"),
        ("base_model.model.classifier.weight", Role.REPLACEMENT, "classifier.weight"),
        ("base_model.model.m.q.base_layer.bias", Role.REPLACEMENT, "m.q.base_layer.bias"),
        ("m.q.lora_A.one.two.weight", Role.REPLACEMENT, "m.q.lora_A.one.two.weight"),
        ("lora_A.weight", Role.REPLACEMENT, "lora_A.weight"),
        ("", Role.REPLACEMENT, ""),
    ],
)
def test_everything_else_is_said_to_be_what_it_is(key: str, role: Role, module: str) -> None:
    assert route_key(key, PARAMETERS) == RoutedKey(key, role, module)


@pytest.mark.parametrize(
    ("key", "suffix", "name"),
    [
        ("m.q.svd.U_low", "svd.U_low", None),
        ("base_model.model.m.q.svd.U_low.default", "svd.U_low", "default"),
        ("m.q.encoders.0.weight", "encoders.0.weight", None),
        ("m.q.encoders.12.weight", "encoders.12.weight", None),
    ],
)
def test_a_parameter_may_have_two_parts_and_be_numbered(
    key: str, suffix: str, name: str | None
) -> None:
    found = route_key(key, {"svd.U_low", "encoders.#"})
    assert found == RoutedKey(key, Role.ADAPTER, "m.q", suffix, name)
    assert any_number(suffix) in {"svd.U_low", "encoders.#.weight"}


@pytest.mark.parametrize("key", ["m.q.svd.other", "m.q.encoders.x.weight", "m.q.encoders.weight"])
def test_half_a_parameter_is_none(key: str) -> None:
    assert route_key(key, {"svd.U_low", "encoders.#"}).role is Role.REPLACEMENT
