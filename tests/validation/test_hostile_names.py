"""Names: none leads out of the output folder, and those of any script and with spaces work."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import yaml

from lora_quant import BuildOptions, build
from lora_quant.errors import LoraQuantError
from lora_quant.findings import Severity
from lora_quant.runtime.verify.verify import verify
from lora_quant.validation.validate import validate_paths
from tests.fuzz.seeds import tiny_config

HOSTILE = (
    "..",
    ".",
    "",
    "../outside",
    "/outside",
    "a/b",
    "a\\b",
    "..\\outside",
    "C:",
    "C:\\outside",
    "\\\\server\\share",
    "CON",
    "nul.txt",
    "trailing.",
    "trailing ",
    "a\nb",
    "a\0b",
    "\u202egnp",
    "x" * 300,
)
SCRIPTS = {
    "Stimme ändern": "\u00c4nderung mit Leerzeichen",
    "\u8a9e\u8abf": "\u4f7f\u7528 \u4e8b\u4f8b",
    "\u0437\u0430\u043a\u043e\u043d": "\u043e\u0431\u0430 \u0441\u0440\u0430\u0437\u0443",
    "\u0627\u0644\u0644\u0647\u062c\u0629": "\u062d\u0627\u0644\u0629 \u0623\u0648\u0644\u0649",
    "\U0001f600 smile": "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\u0939\u093f\u0928\u094d\u0926\u0940": "\u0e44\u0e17\u0e22",
}


def write_config(folder: Path, adapter: str, use_case: str) -> Path:
    """The tiny build as files, with these names."""
    tiny_config(folder)
    document = {
        "adapter": [{"name": adapter, "lora_config": "tone"}],
        "use-case": [
            {
                "name": use_case,
                "adapter_names": [adapter],
                "adapter_alphas": [1.0],
                "model_name": "model.onnx",
            }
        ],
    }
    path = folder / "lora_config.yaml"
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    return path


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("around") / "inner"
    folder.mkdir()
    write_config(folder, "tone", "tone")
    return folder


@pytest.mark.parametrize("field", ["adapter", "use-case"])
@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_is_written_outside_of_the_output(name: str, field: str, ready: Path) -> None:
    config = ready / "lora_config.yaml"
    document = yaml.safe_load(config.read_text(encoding="utf-8"))
    document[field][0]["name"] = name
    if field == "adapter":
        document["use-case"][0]["adapter_names"] = [name]
    damaged = ready / "damaged.yaml"
    damaged.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    before = tree(ready.parent)
    output = ready / "out"
    try:
        build(damaged, output)
    except LoraQuantError:
        pass
    else:
        assert (output / "pack.json").is_file()
        shutil.rmtree(output)
    assert tree(ready.parent) == before


def test_a_tensor_whose_name_is_a_path_writes_no_file(tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    config = tiny_config(tmp_path)
    before = set(tmp_path.rglob("*"))
    options = BuildOptions(alpha_name="../../outside")
    with contextlib.suppress(LoraQuantError):
        build(config, pack, options)
    made = set(tmp_path.rglob("*")) - before
    assert all(path == pack or pack in path.parents for path in made)


@pytest.mark.parametrize("adapter", SCRIPTS)
def test_names_of_any_script_work_from_build_to_verify(adapter: str, tmp_path: Path) -> None:
    use_case = SCRIPTS[adapter]
    folder = tmp_path / f"{adapter} & {use_case}"
    folder.mkdir()
    config = write_config(folder, adapter, use_case)
    output = folder / f"pack {use_case}"
    result = build(config, output, BuildOptions(targets=("qairt", "onnxruntime")))
    assert [u.name for u in result.manifest.use_cases] == [use_case]
    validation = validate_paths([output, config])
    assert not [f for f in validation.findings if f.severity is Severity.ERROR]
    assert verify(output).ok
