"""The seal of a manifest: every byte counts, and nothing but the key is taken for it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from lora_quant.config.manifest import read_manifest
from lora_quant.config.manifest_seal import UNSEALED, is_sealed, seal_manifest
from lora_quant.errors import ConfigError

EXAMPLE = Path(__file__).parent / "cases" / "positive" / "pack" / "everything.json"
TEXT = f'{{"said": "\\"manifest_sha256\\": \\"{UNSEALED}\\"", "manifest_sha256" : "{UNSEALED}"}}\n'


def test_the_seal_is_the_hash_of_the_text_with_zeros_in_its_place() -> None:
    sealed = seal_manifest(TEXT)
    seal = json.loads(sealed)["manifest_sha256"]
    assert seal == hashlib.sha256(TEXT.encode()).hexdigest()
    assert sealed == TEXT[::-1].replace(UNSEALED, seal[::-1], 1)[::-1]
    assert seal_manifest(sealed) == sealed
    assert is_sealed(sealed.encode())


def test_every_flipped_bit_breaks_it() -> None:
    content = bytearray(seal_manifest(TEXT).encode())
    for bit in range(8 * len(content)):
        content[bit // 8] ^= 1 << (bit % 8)
        assert not is_sealed(bytes(content))
        content[bit // 8] ^= 1 << (bit % 8)


@pytest.mark.parametrize("text", ["{}", '{"manifest_sha256": "0"}', TEXT * 2])
def test_a_text_without_one_place_for_it_cannot_be_sealed(text: str) -> None:
    with pytest.raises(ConfigError, match="expected once"):
        seal_manifest(text)


def test_a_changed_manifest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pack.json"
    path.write_bytes(EXAMPLE.read_bytes() + b"\n")
    with pytest.raises(ConfigError, match=r"pack\.json was changed since it was written") as caught:
        read_manifest(tmp_path)
    assert caught.value.where.file == path
    assert caught.value.hint == "build the pack again, or take the file from an undamaged copy"
    assert read_manifest(tmp_path, check_seal=False) == read_manifest(EXAMPLE)
