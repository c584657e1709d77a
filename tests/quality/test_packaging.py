"""A wheel built from an unpacked source distribution holds what the package needs at run time."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest

from lora_quant import __version__
from lora_quant.config.schema_files import FOREIGN_SCHEMAS, schema_file
from lora_quant.config.schemas import SCHEMAS
from tests.quality.paths import ROOT, run_python

NAMES = [*SCHEMAS, *FOREIGN_SCHEMAS]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution unpacked, and a wheel that was built from it unpacked."""
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, "sdist", folder)
    with tarfile.open(folder / f"lora_quant-{__version__}.tar.gz") as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(folder)
    source = folder / f"lora_quant-{__version__}"
    build(source, "wheel", folder)
    wheel = folder / "wheel"
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as built:
        built.extractall(wheel)
    return source, wheel


def build(source: Path, kind: str, target: Path) -> None:
    done = run_python("-m", "hatchling", "build", "-t", kind, "-d", str(target), cwd=source)
    assert done.returncode == 0, done.stdout


def test_wheel_holds_schemas_and_the_typing_marker(distributions: tuple[Path, Path]) -> None:
    package = distributions[1] / "lora_quant"
    assert sorted(p.name for p in (package / "schemas").iterdir()) == sorted(
        schema_file(name) for name in NAMES
    )
    assert (package / "py.typed").is_file()


def test_wheel_holds_every_module(distributions: tuple[Path, Path]) -> None:
    def modules(folder: Path) -> set[str]:
        return {p.relative_to(folder).as_posix() for p in (folder / "lora_quant").rglob("*.py")}

    assert modules(distributions[1]) == modules(ROOT)


def test_wheel_reads_its_own_schemas(distributions: tuple[Path, Path], tmp_path: Path) -> None:
    script = tmp_path / "read_schemas.py"
    script.write_text(
        "import sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import lora_quant\n"
        "assert lora_quant.__file__.startswith(sys.argv[1]), lora_quant.__file__\n"
        "from lora_quant.config.schema_files import load_schema\n"
        "for name in sys.argv[2:]:\n"
        "    assert load_schema(name)['$schema'], name\n",
        encoding="utf-8",
    )
    done = run_python(str(script), str(distributions[1]), *NAMES, cwd=tmp_path)
    assert done.returncode == 0, done.stdout


def test_licence_is_the_full_text(distributions: tuple[Path, Path]) -> None:
    source, wheel = distributions
    (packed,) = wheel.glob("*.dist-info/licenses/LICENSE")
    text = packed.read_text(encoding="utf-8")
    assert "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION" in text
    assert text == (source / "LICENSE").read_text(encoding="utf-8")


def test_source_distribution_holds_what_the_readme_names(distributions: tuple[Path, Path]) -> None:
    source = distributions[0]
    for name in ("Makefile", "README.md", "CHANGELOG.md", "docs", "tests", "samples/tiny_llama"):
        assert (source / name).exists(), name
