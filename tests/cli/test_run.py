"""`lora-quant run`: what it writes, what it prints, what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_quant.cli.main import run
from lora_quant.config.manifest import Manifest
from tests.command_line import command
from tests.runtime.session_packs import DIM, RANKS, USE_CASES, Handmade
from tests.sample import ROOT

HEAVY = {"onnx", "onnxruntime", "numpy", "pydantic", "rich", "yaml", "safetensors", "ml_dtypes"}
PACK = Handmade()
X = np.random.default_rng(9).standard_normal((1, 3, DIM)).astype(np.float32)
REPORT = json.loads((ROOT / "schemas" / "report.1.schema.json").read_text(encoding="utf-8"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a pack and inputs, which is the current one."""
    PACK.write(tmp_path / "OUT")
    np.savez(tmp_path / "x.npz", x=X)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_as(got: Mapping[str, np.ndarray], strengths: Mapping[str, float]) -> None:
    """The outputs are those of the formula, to the rounding of float32 (see Handmade.bounds)."""
    bounds = PACK.bounds(X, strengths)
    for name, wanted in PACK.expected(X, strengths).items():
        assert np.abs(got[name] - wanted).max() <= bounds[name], name


def test_outputs_are_written_as_npz(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["run", "OUT", "--use-case", "both", "--inputs", "x.npz", "-o", "y.npz"]
    assert run(words) == 0
    with np.load("y.npz") as written:
        assert_as(dict(written), USE_CASES["both"])
    out, err = capfd.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0].split() == ["output", "type", "shape", "min", "mean", "max"]
    assert lines[1].startswith("q       float32  [1, 3, 4]")
    assert lines[-2:] == [
        "ran use case 'both' (0.75 tone + 1.5 legal), target onnxruntime on cpu",
        "wrote y.npz",
    ]


def test_outputs_are_written_as_safetensors(folder: Path) -> None:
    save_file({"x": X}, "x.safetensors")
    words = ["run", "OUT", "--use-case", "legal", "--inputs", "x.safetensors"]
    assert run([*words, "-o", "y.safetensors"]) == 0
    assert_as(load_file("y.safetensors"), USE_CASES["legal"])


def test_strengths_replace_the_compiled_ones(folder: Path) -> None:
    words = ["run", "OUT", "--use-case", "both", "--inputs", "x.npz", "-o", "y.npz"]
    assert run([*words, "--alpha", "tone=0.5", "--alpha", "legal=-1"]) == 0
    with np.load("y.npz") as written:
        assert_as(dict(written), {"tone": 0.5, "legal": -1.0})


def test_the_base_runs_without_adapters(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["run", "OUT", "--base", "--inputs", "x.npz", "-o", "y.npz"]) == 0
    with np.load("y.npz") as written:
        assert_as(dict(written), {})
    assert "ran the base, target onnxruntime on cpu" in capfd.readouterr().out


def test_equal_runs_write_equal_bytes(folder: Path) -> None:
    words = ["run", "OUT", "--use-case", "tone", "--random-inputs", "3"]
    for suffix in ("npz", "safetensors"):
        for name in ("one", "two"):
            assert run([*words, "-o", f"{name}.{suffix}"]) == 0
        assert Path(f"one.{suffix}").read_bytes() == Path(f"two.{suffix}").read_bytes()


def test_only_named_outputs_are_written(folder: Path) -> None:
    words = ["run", "OUT", "--use-case", "tone", "--inputs", "x.npz", "-o", "y.npz"]
    assert run([*words, "--output-name", "v"]) == 0
    with np.load("y.npz") as written:
        assert written.files == ["v"]


def test_a_file_is_replaced_with_force_only(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("y.npz").write_bytes(b"mine")
    words = ["run", "OUT", "--use-case", "tone", "--inputs", "x.npz", "-o", "y.npz"]
    assert run(words) == 1
    assert Path("y.npz").read_bytes() == b"mine"
    assert "add --force to replace it" in capfd.readouterr().err
    assert run([*words, "--force"]) == 0
    with np.load("y.npz") as written:
        assert_as(dict(written), USE_CASES["tone"])
    assert sorted(path.name for path in folder.iterdir()) == ["OUT", "x.npz", "y.npz"]


def test_json_tells_what_ran(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["run", "OUT", "--use-case", "both", "--alpha", "tone=0", "--inputs", "x.npz"]
    assert run([*words, "-o", "y.npz", "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    jsonschema.Draft202012Validator(REPORT).validate(report)
    assert report["outputs"] == ["y.npz"]
    details = report["details"]
    assert details["strengths"] == {"tone": 0.0, "legal": 1.5}
    assert [details[key] for key in ("target", "device", "use_case")] == [
        "onnxruntime",
        "cpu",
        "both",
    ]
    with np.load("y.npz") as written:
        for one in details["outputs"]:
            values = written[one["name"]].astype(np.float64)
            assert one["shape"] == list(values.shape)
            assert (one["min"], one["max"]) == (values.min(), values.max())
            assert one["not_finite"] == 0


def test_values_that_are_not_finite_are_told(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    inputs = X.copy()
    inputs[0, 1, :] = np.inf
    np.savez("inf.npz", x=inputs)
    assert run(["run", "OUT", "--base", "--inputs", "inf.npz"]) == 0
    assert "4 values of output 'q' are NaN or Inf; the range leaves them out" in (
        capfd.readouterr().out
    )


def test_gates_come_from_the_input_with_token_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Handmade(gated=["tone"]).write(tmp_path / "OUT")
    np.savez(tmp_path / "x.npz", x=X)
    monkeypatch.chdir(tmp_path)
    words = ["run", "OUT", "--use-case", "tone", "--inputs", "x.npz"]
    assert run(words) == 1
    assert "--gate-from INPUT" in capfd.readouterr().err
    assert run([*words, "--gate-from", "y"]) == 1
    assert "there is no input 'y' to take gates from" in capfd.readouterr().err
    assert run([*words, "--gate-from", "x"]) == 1
    assert "token ids are float32 [1, 3, 4], expected integers" in capfd.readouterr().err


def test_a_strength_beyond_calibrated_activations_is_noted(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = folder / "OUT" / "pack.json"
    manifest = Manifest.model_validate_json(file.read_text(encoding="utf-8"))
    (target,) = manifest.targets
    first, *rest = target.inputs
    marked = target.model_copy(
        update={"inputs": (first, rest[0].model_copy(update={"role": "activation"}), *rest[1:])}
    )
    changed = manifest.model_copy(update={"targets": (marked,)})
    file.write_text(changed.dump(), encoding="utf-8")
    words = ["run", "OUT", "--use-case", "both", "--inputs", "x.npz"]
    assert run([*words, "--alpha", "tone=0.5", "--alpha", "legal=1.5"]) == 0
    assert "run/beyond-compiled" not in capfd.readouterr().out
    assert run([*words, "--alpha", "tone=0.8", "--alpha", "legal=-0.1"]) == 0
    told = capfd.readouterr().out
    assert "the strength 0.8 of adapter 'tone' lies beyond the compiled 0.75" in told
    assert "the strength -0.1 of adapter 'legal' lies beyond the compiled 1.5" in told


ONE = ["OUT", "--use-case", "tone"]
USAGE: Mapping[str, tuple[Sequence[str], str]] = {
    "no use case": (["OUT", "--inputs", "x.npz"], "give either --use-case NAME or --base"),
    "use case and base": ([*ONE, "--base", "--inputs", "x.npz"], "give either --use-case"),
    "no inputs": (ONE, "give either --inputs FILE or --random-inputs SEED"),
    "both inputs": ([*ONE, "--inputs", "x.npz", "--random-inputs", "1"], "give either --inputs"),
    "a strength without a number": (
        [*ONE, "--inputs", "x.npz", "--alpha", "tone"],
        "--alpha 'tone': expected ADAPTER=VALUE, such as tone=0.5",
    ),
    "a strength without an adapter": (
        [*ONE, "--inputs", "x.npz", "--alpha", "=1"],
        "--alpha '=1': expected ADAPTER=VALUE",
    ),
    "a strength twice": (
        [*ONE, "--inputs", "x.npz", "--alpha", "tone=1", "--alpha", "tone=2"],
        "--alpha is given twice for one adapter",
    ),
    "a strength that is no number": (
        [*ONE, "--inputs", "x.npz", "--alpha", "tone=nan"],
        "--alpha 'tone=nan': expected a finite number",
    ),
    "a strength without an end": (
        [*ONE, "--inputs", "x.npz", "--alpha", "tone=-inf"],
        "--alpha 'tone=-inf': expected a finite number",
    ),
    "an architecture of no device": (
        [*ONE, "--inputs", "x.npz", "--htp-arch", "73"],
        "--htp-arch is given without --device htp",
    ),
    "a strength of the base": (
        ["OUT", "--base", "--inputs", "x.npz", "--alpha", "tone=1"],
        "--alpha is given with --base",
    ),
}


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage_is_told(folder: Path, case: str, capfd: pytest.CaptureFixture[str]) -> None:
    words, message = USAGE[case]
    assert run(["run", *words]) == 2
    assert message in capfd.readouterr().err


REFUSED: Mapping[str, tuple[Sequence[str], str]] = {
    "an unknown use case": (["OUT", "--use-case", "tune"], "did you mean 'tone'?"),
    "an unknown adapter": ([*ONE, "--alpha", "tome=1"], "did you mean 'tone'?"),
    "a target that was not built": ([*ONE, "--target", "qnn"], "build with --target qnn"),
    "a device of another target": ([*ONE, "--device", "htp"], "build with --target qnn"),
    "an output of another type": ([*ONE, "-o", "y.txt"], "as .npz or .safetensors, got '.txt'"),
    "an output in no folder": ([*ONE, "-o", "a/y.npz"], "the folder of the output file does not"),
    "a folder as output": ([*ONE, "-o", "d.npz"], "the output file is a folder"),
    "an output among the files of the pack": (
        [*ONE, "-o", "OUT/onnxruntime/y.npz", "--force"],
        "the output file lies inside the pack",
    ),
    "the inputs as output": ([*ONE, "-o", "x.npz", "--force"], "is the one with the inputs"),
    "an unknown output": ([*ONE, "--output-name", "w"], "the graph has no output 'w'"),
    "no pack": (["OUT/onnxruntime", "--base"], "the folder is not a pack"),
    "no folder": (["OUTT", "--base"], "the folder of the pack does not exist"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_run_is_refused_and_nothing_written(
    folder: Path, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("d.npz").mkdir()
    before = sorted(folder.iterdir())
    words, message = REFUSED[case]
    assert run(["run", *words, "--inputs", "x.npz"]) == 1
    err = re.sub(r"\s+", " ", capfd.readouterr().err)
    assert message in err
    assert sorted(folder.iterdir()) == before


def test_damaged_files_are_refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("x.npz").write_bytes(b"PK no zip")
    assert run(["run", *ONE, "--inputs", "x.npz"]) == 1
    assert "the inputs cannot be read" in capfd.readouterr().err
    path = folder / "OUT" / "onnxruntime" / "tone.onnx_adapter"
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    assert run(["run", *ONE, "--random-inputs", "0"]) == 1
    assert "its SHA-256 differs" in capfd.readouterr().err


def test_what_is_no_npz_file_is_told_without_advice_to_unpickle_it(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("x.npz").write_text("x,y\n1,2\n", encoding="utf-8")
    assert run(["run", *ONE, "--inputs", "x.npz"]) == 1
    err = capfd.readouterr().err
    assert "the inputs cannot be read: File is not a zip file" in err
    assert "pickle" not in err


def test_a_negative_seed_is_refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["run", *ONE, "--random-inputs", "-1"]) == 1
    assert "the seed of random inputs is -1, expected 0 or more" in capfd.readouterr().err


def test_gates_that_nothing_waits_for_are_noted(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["run", *ONE, "--inputs", "x.npz", "--gate-from", "x"]) == 0
    assert "the gate from 'x' changes nothing (run/no-gate)" in capfd.readouterr().out


def test_it_runs_in_a_folder_with_spaces_and_umlauts(tmp_path: Path) -> None:
    home = tmp_path / "schöne Pakete"
    home.mkdir()
    PACK.write(home / "für alle")
    done = command(
        "run",
        home / "für alle",
        "--use-case",
        "both",
        "--random-inputs",
        "1",
        "-o",
        home / "größe.npz",
    )
    assert done.returncode == 0, done.stderr
    with np.load(home / "größe.npz") as written:
        assert {name: value.shape for name, value in written.items()} == {
            "q": (1, 1, DIM),
            "v": (1, 1, DIM),
        }


@pytest.mark.parametrize(
    "code",
    [
        "from lora_quant.cli.main import run; assert run(['run', '--help']) == 0",
        "import lora_quant.runtime",
    ],
)
def test_help_and_the_room_load_nothing_heavy(code: str) -> None:
    check = f"import sys; found = set(sys.modules) & {HEAVY!r}; assert not found, found"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{check}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_ranks_of_the_hand_made_pack_differ() -> None:
    """What the tests above rely on: no rank is another's."""
    assert len(set(RANKS.values())) == len(RANKS)


def test_what_a_library_prints_goes_to_standard_error() -> None:
    code = (
        "import ctypes, os\n"
        "from lora_quant.cli.own_stdout import own_stdout\n"
        "print('before')\n"
        "with own_stdout(enabled=True):\n"
        "    os.write(1, b'written\\n')\n"
        "    os.name == 'posix' and ctypes.CDLL(None).puts(b'buffered')\n"
        "print('after')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["before", "after"]
    assert done.stderr.split() == ["written", "buffered"]
