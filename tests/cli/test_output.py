"""What a person sees: tables, findings, and errors with the paths that were typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_quant.cli.main import run
from lora_quant.cli.render import new_console, show_findings
from lora_quant.findings import Finding, Severity
from tests.adapters.fixture_base import KINDS
from tests.conftest import Packs
from tests.sample import CONFIG, edit_json, keep_use_cases, make_float


def test_build_tells_what_it_made(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["build", str(CONFIG), "-o", str(tmp_path / "out")]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "both      1 tone + 0.6 legal  [0, 4) [4, 12)" in out
    assert "max rank 12, 14 attach points, mode adapter_only, alpha input lora_alpha [2]" in out
    assert out.endswith(f"built {tmp_path / 'out'}\n")


def test_build_tells_how_large_a_use_case_is_for_each_target(
    sample: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config, out = keep_use_cases(sample, ["base", "both"]), sample.parent / "out"
    targets = ("onnxruntime", "qairt")
    options = [word for target in targets for word in ("--target", target)]
    arguments = ["build", str(config), "-o", str(out), *options, "--alpha-layout", "rank"]
    assert run(arguments) == 0
    lines = capfd.readouterr().out.splitlines()
    (header,) = (number for number, line in enumerate(lines) if line.startswith("use case"))
    assert lines[header].split()[-2:] == list(targets)
    files = json.loads((out / "pack.json").read_text(encoding="utf-8"))["targets"]
    for line in lines[header + 1 : header + 3]:
        name, *_, first, unit, second, other_unit = line.split()
        for size, target in ((first + unit, "onnxruntime"), (second + other_unit, "qairt")):
            (record,) = (t for t in files if t["name"] == target)
            total = sum(f["size"] for f in record["files"] if f.get("use_case") == name)
            assert size == (f"{total}B" if total < 1024 else f"{total / 1024:.1f}KiB")
    assert lines[-2].endswith(
        "alpha input lora_alpha [2] for onnxruntime, lora_alpha [12] for qairt"
    )


def test_an_adapter_without_a_rank_has_none_to_show(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = kinds_config(tmp_path, "ia3_feedforward")
    assert run(["build", str(config), "-o", str(tmp_path / "out")]) == 0
    assert "1 ia3_feedforward  none" in capfd.readouterr().out


def test_a_merged_build_tells_how_many_modules_changed(
    sample: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = make_float(sample)
    out = sample.parent / "out"
    assert run(["build", str(config), "-o", str(out), "--merge", "legal"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[-2] == "merged into the weights of 14 modules"
    assert [line.rstrip() for line in lines[:2]] == ["use case  adapters", "legal     1 legal"]


def kinds_config(folder: Path, *cases: str) -> Path:
    """A configuration of one use case per adapter of the kinds' fixtures."""
    adapters = [{"name": case, "lora_config": str(KINDS / case)} for case in cases]
    use_cases = [
        {
            "name": case,
            "adapter_names": [case],
            "adapter_alphas": [1.0],
            "model_name": str(KINDS / "bases" / "llama" / "model.onnx"),
        }
        for case in cases
    ]
    path = folder / "lora_config.yaml"
    path.write_text(json.dumps({"adapter": adapters, "use-case": use_cases}), encoding="utf-8")
    return path


def test_approximations_are_one_line_per_adapter(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config, out = kinds_config(tmp_path, "c3a", "hira_linear"), tmp_path / "out"
    options = ["--approximate", "--approximate-rank", "4", "--max-error", "0.99"]
    assert run(["build", str(config), "-o", str(out), *options]) == 0
    shown = [line for line in capfd.readouterr().out.splitlines() if "approximated" in line]
    pack = json.loads((out / "pack.json").read_text(encoding="utf-8"))
    layers = [f for f in pack["findings"] if f["rule"] == "adapter/approximated"]
    expected = []
    for adapter in pack["adapters"]:
        name, error = adapter["name"], adapter["max_error"]
        count = sum(f["where"]["adapter"] == name for f in layers)
        assert count > 1
        expected.append(
            f"warning {count} modules of adapter {name!r} are approximated by rank 4, with "
            f"relative Frobenius errors up to {error:.3g} (adapter/approximated)"
        )
    assert shown == expected


def test_build_shows_findings(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["build", str(CONFIG), "-o", str(tmp_path / "out"), "--mode", "none"]) == 0
    out, _ = capfd.readouterr()
    assert "note 65 branch tensors got the union of the ranges of all use cases" in out
    assert "(encodings/united)" in out


def test_many_findings_of_a_kind_are_one(sample: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """14 modules of legal, 3 activations each; all of them are in the manifest."""
    path = keep_use_cases(sample, ["base", "legal"]).parent / "encodings" / "legal.encodings"

    def cut(document: dict[str, list[dict[str, str]]]) -> None:
        document["activation_encodings"] = [
            e for e in document["activation_encodings"] if "lora" not in e["name"]
        ]

    edit_json(path, cut)
    out = sample.parent / "out"
    assert run(["build", str(sample), "-o", str(out)]) == 0
    text, _ = capfd.readouterr()
    manifest = json.loads((out / "pack.json").read_text(encoding="utf-8"))
    more = sum(f["rule"] == "encodings/missing-activation" for f in manifest["findings"]) - 1
    assert more > 20
    assert text.count("encodings/missing-activation") == 1
    assert f"a = A x (and {more} more of the kind; all of them are in pack.json)" in text


def test_the_gravest_findings_are_shown_first(capsys: pytest.CaptureFixture[str]) -> None:
    severities = [Severity.NOTE] * 19 + [Severity.WARNING] * 3 + [Severity.ERROR]
    findings = tuple(Finding("a/b", s, f"number {n}") for n, s in enumerate(severities))
    show_findings(new_console(), findings)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == [
        "error number 22 (a/b)",
        "warning number 19 (a/b)",
        "warning number 20 (a/b)",
        "warning number 21 (a/b)",
        "note number 0 (a/b)",
    ]
    assert lines[20:] == ["and 3 notes more; all of them are in pack.json"]
    show_findings(new_console(), (findings[-1],) * 21 + (findings[0],))
    assert "and 1 error, 1 note more;" in capsys.readouterr().out


def test_verify_tells_every_use_case(packs: Packs, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(packs("adapter_only").output)]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0].startswith("qairt ")
    assert [line.split()[0] for line in lines[2:7]] == [
        "base",
        "tone",
        "legal",
        "style",
        "both",
    ]
    assert all(line.split()[1] == "logits" for line in lines[2:7])
    assert "adapters off (alpha 0, zero weights) against the base graph: bit for bit" in out
    assert lines[-1] == "verified for qairt"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "nope.yaml", "-o", "out"], "the configuration does not exist"),
        (["verify", "nope"], "the folder of the pack does not exist"),
        (["validate", "nope"], "the file does not exist"),
        (["map", "nope.onnx"], "the ONNX graph does not exist"),
    ],
)
def test_paths_that_were_typed(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 1
    text = "".join(capfd.readouterr())
    assert message in text
    assert f"where: {arguments[1]}\n" in text
    assert "as given on the command line; a relative one starts at the current folder" in text


def test_verify_of_a_folder_that_is_no_pack(
    tmp_path: Path, packs: Packs, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(tmp_path)]) == 1
    error = capfd.readouterr().err
    assert "error LQ110: the folder is not a pack: it has no pack.json" in error
    assert "hint:  give the folder that `lora-quant build -o` wrote" in error
    pack = str(packs("adapter_only").output)
    for option, what in (("--base", "base graph"), ("--inputs", "file with inputs")):
        assert run(["verify", pack, option, "nope"]) == 1
        assert f"the {what} does not exist" in capfd.readouterr().err
