"""SARIF by Microsoft's own validator, with GitHub's rules, and the schemas by ajv of JavaScript."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lora_quant.config.schema_files import ALL_SCHEMAS, checkout_folder, schema_file
from lora_quant.validation.catalogue import RULES
from lora_quant.validation.checked import Checked, Validation
from lora_quant.validation.reports.sarif_report import sarif_report
from tests.command_line import environment
from tests.quality.paths import ROOT, run
from tests.validation.reports.findings import FIELD, ODD, sample

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("npm") is None, reason="no npm"),
    pytest.mark.skipif(sys.platform != "linux", reason="the package is of Linux"),
]

PACKAGES = ("@microsoft/sarif-multitool-linux@5", "ajv@8", "ajv-formats@3")
CASES = ROOT / "tests" / "config" / "cases"
AJV = """
const {readFileSync} = require("fs");
const Ajv = require("ajv/dist/2020").default;
const [schema, ...files] = process.argv.slice(2);
const ajv = new Ajv({strict: false, unicodeRegExp: true});
const validate = ajv.compile(JSON.parse(readFileSync(schema)));
console.log(JSON.stringify(files.map(file => validate(JSON.parse(readFileSync(file))))));
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text("{}")
    done = run(["npm", "install", "--no-audit", "--no-fund", *PACKAGES], cwd=folder)
    assert done.returncode == 0, done.stdout
    return folder


@pytest.mark.parametrize("what", ["odd places", "every rule"])
def test_microsofts_validator_finds_no_error(what: str, packages: Path, tmp_path: Path) -> None:
    validation = sample()
    if what == "every rule":
        findings = tuple(rule.finding("a message", FIELD) for rule in RULES.values())
        validation = Validation((Checked(ODD, None, findings),))
    log, result = tmp_path / "our.sarif", tmp_path / "their.sarif"
    log.write_text(sarif_report(validation), encoding="utf-8")
    folder = packages / "node_modules" / "@microsoft" / "sarif-multitool-linux"
    done = run([sys.executable, "-m", "check_jsonschema", "--schemafile",
                str(folder / "sarif-2.1.0.json"), str(log)])  # fmt: skip
    assert done.returncode == 0, done.stdout
    program = folder / "Sarif.Multitool"
    program.chmod(0o755)
    subprocess.run(
        [program, "validate", log, "--rule-kind", "Sarif;Ghas", "--output", result],
        env=environment(DOTNET_SYSTEM_GLOBALIZATION_INVARIANT="1"),
        check=False,
        capture_output=True,
    )
    (judged,) = json.loads(result.read_text(encoding="utf-8-sig"))["runs"]
    assert judged["invocations"][0]["executionSuccessful"] is True
    found = [r for r in judged.get("results", []) if r.get("level", "warning") == "error"]
    assert not found, json.dumps(found, indent=1)


def test_ajv_agrees_on_every_case(packages: Path, tmp_path: Path) -> None:
    script = packages / "check.js"
    script.write_text(AJV, encoding="utf-8")
    for name in ALL_SCHEMAS:
        cases = {
            kind: sorted((CASES / kind / name).glob("*.json")) for kind in ("positive", "negative")
        }
        files = [*cases["positive"], *cases["negative"]]
        schema = checkout_folder() / schema_file(name)
        done = run(["node", str(script), str(schema), *map(os.fspath, files)], cwd=packages)
        assert done.returncode == 0, done.stdout
        expected = [True] * len(cases["positive"]) + [False] * len(cases["negative"])
        assert json.loads(done.stdout.splitlines()[-1]) == expected, name
