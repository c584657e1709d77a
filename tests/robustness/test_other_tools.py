"""A pack checked without lora-quant, with the commands that docs/robustness.md tells."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from lora_quant.api import build
from tests.command_line import environment
from tests.quality.paths import ROOT
from tests.validation.case_trees import write_flow
from tests.validation.packs import flip_byte

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the child is a shell script")

DOCS = (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8")
(SCRIPT,) = re.findall(r"^```bash\n(.*?)^```$", DOCS, re.MULTILINE | re.DOTALL)


def check(pack: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", SCRIPT],
        cwd=pack,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def test_commands_of_the_docs_take_a_pack_and_find_what_changed(tmp_path: Path) -> None:
    pack = build(write_flow(tmp_path / "flow") / "lora_config.yaml", tmp_path / "ü x").output
    done = check(pack)
    assert done.returncode == 0, done.stderr
    weights = pack / "qairt" / "tone" / "lora_weights.safetensors"
    for file, offset, told in (
        (weights, weights.stat().st_size - 1, "qairt/tone/lora_weights.safetensors: FAILED"),
        (pack / "pack.json", 4, ""),
    ):
        flip_byte(file, offset)
        done = check(pack)
        assert done.returncode != 0, file
        assert told in done.stdout
        flip_byte(file, offset)
    # A space more is JSON that says the same.
    manifest = pack / "pack.json"
    manifest.write_bytes(manifest.read_bytes() + b" ")
    assert check(pack).returncode == 1
