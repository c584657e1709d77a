"""How long `lora-quant validate` takes over a folder of many small files.

    python benchmarks/case_validate.py

The folder holds groups of six files, each of another kind: lora_config.yaml, adapter JSON, attach
point mapping, AIMET encodings 0.6.1 and 1.0.0, and run config in YAML; they name no graph and no
checkpoint, so that what is measured is reading, schemas and readers. One group in ten has a
mistake, whose place has to be found. Each command is run as a whole process, several times, in
turns; the floor parses the same files with PyYAML's C loader and `json`, and does nothing else.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from measure import Spread, Usage, run

GROUPS = 500
RUNS = 5
MODULES = 14
JOBS = (None, 1, 2)

_FLOOR = """
import json, pathlib, sys
import yaml
for path in sorted(pathlib.Path(sys.argv[1]).rglob("*")):
    if path.suffix == ".yaml":
        yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    elif path.is_file():
        json.loads(path.read_bytes())
"""

# Findings are expected, so that the exit code is 1; anything else is a failure.
_VALIDATE = """
import sys
from lora_quant.cli.main import run
if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]) - 1)
"""


def write_files(folder: Path) -> int:
    """GROUPS groups of six files; how many files there are."""
    for number in range(GROUPS):
        group = folder / f"group_{number:04d}"
        group.mkdir()
        for name, text in _group(number).items():
            (group / name).write_text(text, encoding="utf-8")
    return GROUPS * len(_group(0))


def _group(number: int) -> dict[str, str]:
    modules = [f"model.layers.{i}.self_attn.q_proj" for i in range(MODULES)]
    tensors = [f"/model/layers.{i}/self_attn/q_proj/MatMul_output_0" for i in range(MODULES)]
    rank = "8" if number % 10 == 0 else 8  # text where a number belongs
    old = {"bitwidth": 8, "dtype": "int", "is_symmetric": "False", "min": -1.0, "max": 1.0}
    old |= {"offset": -128, "scale": 2 / 255}
    new = {"bw": 8, "dtype": "INT", "enc_type": "PER_TENSOR", "is_sym": False}
    new |= {"offset": [-128], "scale": [2 / 255]}
    return {
        "adapter.json": json.dumps(
            {"name": f"a{number}", "rank": rank, "alpha": 16, "target_modules": ["q_proj"]}
        ),
        "attach_points.json": json.dumps(
            {m: [t.removesuffix("_output_0")] for m, t in zip(modules, tensors, strict=True)}
        ),
        "lora_config.yaml": "\n".join(
            [
                "adapter:",
                "  - {name: tone, lora_config: adapter.json}",
                "attach_point_onnx_mapping: attach_points.json",
                "use-case:",
                *(
                    f"  - {{name: u{i}, adapter_names: [tone], adapter_alphas: [{i}.5], "
                    "model_name: model.onnx, quant_overrides: new.encodings}"
                    for i in range(4)
                ),
                "",
            ]
        ),
        "new.encodings": json.dumps(
            {
                "version": "1.0.0",
                "activation_encodings": [{"name": t, **new} for t in tensors],
                "param_encodings": [],
            }
        ),
        "old.encodings": json.dumps(
            {
                "version": "0.6.1",
                "activation_encodings": {t: [old] for t in tensors},
                "param_encodings": {},
            }
        ),
        "run.yaml": f"name: both\nadapters:\n  - name: tone\n    alpha: 0.{number % 10}\n",
    }


def report() -> Iterator[str]:
    """The table as Markdown."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "files"
        folder.mkdir()
        count = write_files(folder)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        commands = {"the floor": [sys.executable, "-c", _FLOOR, str(folder)]}
        script = Path(temporary) / "validate.py"
        script.write_text(_VALIDATE, encoding="utf-8")
        for jobs in JOBS:
            given = ["validate", str(folder), "--no-config", "--select", "schema"]
            given += [] if jobs is None else ["--jobs", str(jobs)]
            name = "validate" if jobs is None else f"validate --jobs {jobs}"
            commands[name] = [sys.executable, str(script), *given]
        used: dict[str, list[Usage]] = {name: [] for name in commands}
        for number in range(RUNS + 1):
            for name, command in commands.items():
                usage = run(command)
                if number:  # the first run fills the caches
                    used[name].append(usage)
        same = {
            subprocess.run([*c, "--format", "json"], capture_output=True, check=False).stdout
            for n, c in commands.items()
            if n != "the floor"
        }
        assert len(same) == 1, "the report depends on the number of processes"
    yield f"{count} files of six kinds, {size / 1e6:.1f} MB, {RUNS} runs each, in turns"
    yield ""
    yield "| command | wall, s | CPU, s | files a second | peak of one process, MB |"
    yield "| --- | --- | --- | --- | --- |"
    for name, runs in used.items():
        walls = [u.wall for u in runs]
        cells = (
            name,
            Spread.of(walls).text(2),
            Spread.of([u.cpu for u in runs]).text(2),
            Spread.of([count / wall for wall in walls]).text(0),
            Spread.of([u.peak for u in runs]).text(0),
        )
        yield f"| {' | '.join(cells)} |"


def main() -> int:
    """Print the table."""
    print("\n".join(report()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
