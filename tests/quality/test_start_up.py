"""Importing the package and asking for help load no heavy library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.quality.paths import run_python

HEAVY = (
    "google.protobuf",
    "jsonschema",
    "ml_dtypes",
    "numpy",
    "onnx",
    "onnx_graphsurgeon",
    "onnxruntime",
    "pydantic",
    "rich",
    "safetensors",
    "yaml",
)

CASES = {
    "import lora_quant": "import lora_quant",
    "dir(lora_quant)": "import lora_quant; dir(lora_quant)",
    "--help": "from lora_quant.cli.main import run; assert run(['--help']) == 0",
    "--version": "from lora_quant.cli.main import run; assert run(['--version']) == 0",
    "build --help": "from lora_quant.cli.main import run; assert run(['build', '--help']) == 0",
    "inspect --help": (
        "from lora_quant.cli.main import run; assert run(['inspect', '--help']) == 0"
    ),
    "lower --help": "from lora_quant.cli.main import run; assert run(['lower', '--help']) == 0",
    "map --help": "from lora_quant.cli.main import run; assert run(['map', '--help']) == 0",
    "verify --help": "from lora_quant.cli.main import run; assert run(['verify', '--help']) == 0",
    "validate --help": (
        "from lora_quant.cli.main import run; assert run(['validate', '--help']) == 0"
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_loads_nothing_heavy(case: str) -> None:
    report = "import json, sys; print(); print(json.dumps(sorted(sys.modules)))"
    done = run_python("-c", f"{CASES[case]}\n{report}")
    assert done.returncode == 0, done.stdout
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    found = sorted(loaded.intersection(HEAVY))
    assert not found, f"{case} imports {', '.join(found)}: import them inside the function"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mapping.json", '{"model.q_proj": ["/q/MatMul"]}'),
        ("quant_updatable_tensors.txt", "/a/b\n"),
    ],
)
def test_validate_loads_what_the_kind_of_file_needs(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    done = run_python(
        "-c",
        "import json, sys\n"
        "from lora_quant.cli.main import run\n"
        f"assert run(['validate', {str(tmp_path / name)!r}, '--no-config']) == 0\n"
        "print(json.dumps(sorted(sys.modules)))",
    )
    assert done.returncode == 0, done.stdout
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert not loaded & {"google.protobuf", "ml_dtypes", "numpy", "onnx", "safetensors"}


@pytest.mark.parametrize("name", ["build", "LoraBuilderInputConfig", "no_such_name"])
def test_public_names_load_on_first_use(name: str) -> None:
    done = run_python("-c", f"import lora_quant; lora_quant.{name}")
    assert (done.returncode == 0) is (name != "no_such_name"), done.stdout


def test_every_public_name_exists() -> None:
    import lora_quant

    for name in lora_quant.__all__:
        assert getattr(lora_quant, name) is not None
