"""A flipped bit in any file of any pack is found: the manifest covers every byte, its own as well.

Bits are flipped at both ends of a file and at random places. What finds them is the comparison with
the manifest alone; for a few, the whole check of a pack.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lora_quant.api import build
from lora_quant.config.manifest import MANIFEST_FILE, read_manifest
from lora_quant.config.options import BuildOptions
from lora_quant.validation.documents.document_check import check_document
from lora_quant.validation.documents.schema_check import Depth
from lora_quant.validation.kinds import Kind
from lora_quant.validation.pack.check import check_pack
from lora_quant.validation.pack.files import check_files
from lora_quant.validation.pack.view import PackView
from tests.runtime.test_verify_prompts import prompt_pack
from tests.sample import copy_sample, keep_use_cases, make_float

OPTIONS = {
    "qairt": BuildOptions(),
    "onnxruntime": BuildOptions(targets=("onnxruntime",)),
    "qnn": BuildOptions(targets=("qnn",)),
    "beside-base": BuildOptions(beside_base=True),
    "merged": BuildOptions(merge="tone"),
}
PACKS = (*OPTIONS, "prompt")
RANDOM_BITS = 4


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Packs by name, each built once; whoever flips a bit flips it back."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp("flips")
            if name == "prompt":
                made[name] = prompt_pack(folder, "prompt_tuning")
            else:
                config = copy_sample(folder)
                if name not in ("qairt", "qnn"):  # which have encodings, too
                    config = make_float(config)
                config = keep_use_cases(config, ["base", "tone"])
                made[name] = build(config, folder / "out", OPTIONS[name]).output
        return made[name]

    return get


def flip(path: Path, bit: int) -> None:
    """Flip one bit in place."""
    with path.open("r+b") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ (1 << (bit % 8))]))


def bits(size: int, chance: random.Random, count: int) -> list[int]:
    """The first and last bits of a file, and random ones."""
    return [0, 7, 8 * size - 8, 8 * size - 1, *(chance.randrange(8 * size) for _ in range(count))]


@pytest.mark.parametrize("name", PACKS)
def test_a_flipped_bit_of_a_file(packs: Callable[[str], Path], name: str) -> None:
    root = packs(name)
    manifest = read_manifest(root)
    whole = PackView(manifest, root, root, root.joinpath, Depth.FULL)
    assert check_files(whole)[1] == ()
    chance = random.Random(name)
    for target in manifest.targets:
        for file in target.files:
            # The other files have their hashes compared elsewhere.
            alone = target.model_copy(update={"files": (file,)})
            view = replace(whole, manifest=manifest.model_copy(update={"targets": (alone,)}))
            for bit in bits(file.size, chance, RANDOM_BITS) if file.size else ():
                flip(root / file.path, bit)
                found = [f.rule for f in check_files(view)[1] if f.rule != "pack/stray-file"]
                flip(root / file.path, bit)
                assert found == ["pack/hash"], (file.path, bit)
    assert check_files(whole)[1] == ()


@pytest.mark.parametrize("name", PACKS)
def test_a_flipped_bit_of_the_manifest(packs: Callable[[str], Path], name: str) -> None:
    path = packs(name) / MANIFEST_FILE
    for bit in bits(path.stat().st_size, random.Random(name), 30):
        flip(path, bit)
        found = check_document(path, kind=Kind.MANIFEST, depth=Depth.QUICK).findings
        flip(path, bit)
        assert found, bit
    assert check_document(path, kind=Kind.MANIFEST).findings == ()


def test_a_blank_in_the_manifest_is_found_and_the_rest_is_checked(
    packs: Callable[[str], Path],
) -> None:
    root = packs("qairt")
    path = root / MANIFEST_FILE
    before = path.read_bytes()
    path.write_bytes(before.replace(b'"mode": ', b'"mode":  ', 1))
    names = root / "qairt" / "lora_tensor_names.txt"
    flip(names, 0)
    found = [f.rule for f in check_pack(root)]
    flip(names, 0)
    path.write_bytes(before)
    assert {"pack/manifest-changed", "pack/hash"} <= set(found)
    assert check_pack(root) == ()


@pytest.mark.parametrize("name", ["qairt", "onnxruntime"])
def test_the_whole_check_finds_a_flipped_bit(packs: Callable[[str], Path], name: str) -> None:
    root = packs(name)
    chance = random.Random(name)
    files = [file for target in read_manifest(root).targets for file in target.files]
    for file in chance.sample(files, 3):
        bit = chance.randrange(8 * file.size)
        flip(root / file.path, bit)
        found = [f.rule for f in check_pack(root)]
        flip(root / file.path, bit)
        assert "pack/hash" in found, (file.path, bit)
