"""A real package with a target, a pass and a lowering rule, built, installed and used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.command_line import command, environment
from tests.quality.paths import run_python
from tests.sample import (
    ROOT,
    Document,
    copy_sample,
    edit_json,
    edit_yaml,
    keep_use_cases,
    make_float,
)

PACKAGE = ROOT / "tests" / "plugin_package"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as site-packages is, with the package and its metadata."""
    folder = tmp_path_factory.mktemp("site")
    done = run_python("-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=PACKAGE)
    assert done.returncode == 0, done.stdout
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    wheel.unlink()
    assert (folder / "lora_quant_tiny-0.3.0.dist-info" / "entry_points.txt").is_file()
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return keep_use_cases(make_float(copy_sample(tmp_path)), ["base", "both"])


def test_target_of_a_package(site: Path, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command(
        "build", config, "-o", out, "--target", "tiny", "--target", "qairt",
        env=environment(PYTHONPATH=str(site)),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "note the tiny target was here (tiny/written)" in done.stdout
    assert (out / "tiny" / "both.txt").read_text(encoding="utf-8") == "tone 0 4\nlegal 4 8\n"
    assert (out / "qairt" / "model.onnx").is_file()
    manifest = json.loads((out / "pack.json").read_text(encoding="utf-8"))
    assert [t["name"] for t in manifest["targets"]] == ["tiny", "qairt"]
    assert [f["path"] for f in manifest["targets"][0]["files"]] == [
        "tiny/base.txt",
        "tiny/both.txt",
    ]


def test_target_of_a_package_alone(site: Path, config: Path, tmp_path: Path) -> None:
    """It writes no weights: the table says so and the rest of the summary stands."""
    out = tmp_path / "out"
    done = command(
        "build", config, "-o", out, "--target", "tiny", env=environment(PYTHONPATH=str(site))
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(p.name for p in out.iterdir()) == ["pack.json", "tiny"]


def test_without_the_package_its_target_is_not_known(config: Path, tmp_path: Path) -> None:
    done = command("build", config, "-o", tmp_path / "out", "--target", "tiny")
    assert done.returncode == 2
    assert "--target is 'tiny', and there is no such target" in done.stderr
    assert not (tmp_path / "out").exists()


def test_lowering_rule_of_a_package(site: Path, config: Path, tmp_path: Path) -> None:
    def rename(document: Document) -> None:
        document["peft_type"] = "TINY"

    edit_json(config.parent / "adapters" / "tone" / "adapter_config.json", rename)
    refused = command("build", config, "-o", tmp_path / "out")
    assert refused.returncode == 1
    assert "peft_type is 'TINY', expected one of " in refused.stderr
    assert "install a package with a lowering rule for it" in refused.stderr
    done = command("build", config, "-o", tmp_path / "out", env=environment(PYTHONPATH=str(site)))
    assert (done.returncode, done.stderr) == (0, "")
    manifest = json.loads((tmp_path / "out" / "pack.json").read_text(encoding="utf-8"))
    assert [a["kind"] for a in manifest["adapters"]] == ["TINY", "LORA"]
    verified = command("verify", tmp_path / "out", env=environment(PYTHONPATH=str(site)))
    assert verified.returncode == 0, verified.stderr


def test_pass_of_a_package(site: Path, config: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from lora_quant.api import build\n"
        "from lora_quant.passes.runner import PIPELINE, default_passes\n"
        "names = list(PIPELINE)\n"
        "names.insert(names.index('build-branches') + 1, 'count-branches')\n"
        "result = build(Path(sys.argv[1]), Path(sys.argv[2]), passes=default_passes(names))\n"
        "print([f.message for f in result.findings])\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, str(script), str(config), str(tmp_path / "out")],
        env=environment(PYTHONPATH=str(site)),
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "['14 branches']\n", "")


def test_two_packages_that_claim_one_name(site: Path, config: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    info = other / "rival-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lora_quant.targets]\ntiny = rival:Target\n")
    edited = edit_yaml(config, lambda _: None)
    done = command(
        "build", edited, "-o", tmp_path / "out", "--target", "tiny",
        env=environment(PYTHONPATH=os.pathsep.join((str(site), str(other)))),
    )  # fmt: skip
    assert done.returncode == 1
    assert "two packages register the target 'tiny'" in done.stderr
    assert "lora-quant-tiny 0.3.0 (lora_quant_tiny.target:TinyTarget)" in done.stderr
    assert "rival 1.0 (rival:Target)" in done.stderr
    assert "uninstall one of them" in done.stderr
