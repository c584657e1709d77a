"""The files for CI, held against the schemas and readers of those who take them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from lora_quant.cli.main import cli
from lora_quant.cli.main import run as run_here
from lora_quant.config.schema_files import FILES, schema_file
from lora_quant.config.settings import read_settings
from tests.ci.steps import ACTION, CI_SAMPLES, STEPS, read_yaml
from tests.quality.paths import ROOT, run
from tests.sample import CONFIG

OPTIONS = {option for p in cli.commands["validate"].params for option in p.opts}


@pytest.mark.parametrize(
    "arguments",
    [
        ("check_jsonschema", "--builtin-schema", "vendor.github-actions", "action.yml"),
        (
            "check_jsonschema",
            "--builtin-schema",
            "vendor.github-workflows",
            "samples/ci/github-workflow.yml",
        ),
        ("check_jsonschema", "--builtin-schema", "vendor.gitlab-ci", "samples/ci/gitlab-ci.yml"),
        ("pre_commit", "validate-manifest", ".pre-commit-hooks.yaml"),
        ("pre_commit", "validate-config", "samples/ci/pre-commit-config.yaml"),
    ],
    ids=lambda arguments: arguments[-1],
)
def test_who_reads_a_file_accepts_it(arguments: tuple[str, ...]) -> None:
    done = run([sys.executable, "-m", *arguments])
    assert done.returncode == 0, done.stdout


def test_settings_of_the_sample_are_taken() -> None:
    file = CI_SAMPLES / "pyproject.toml"
    settings = read_settings(file).settings.validation
    assert (settings.fail_on, settings.ignore) == ("warning", ["recognise"])
    assert run_here(["validate", "--config", str(file), "--jobs", "1", str(CONFIG)]) == 0


def test_no_input_of_the_action_can_become_part_of_a_script() -> None:
    """`${{ }}` in a script is replaced before bash sees it, so it would run what an input says."""
    for name, step in STEPS.items():
        assert "${{" not in step.get("run", ""), name


def test_the_action_hands_on_every_input_and_sets_every_output() -> None:
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    used = set(re.findall(r"\$\{\{ inputs\.([a-z-]+) \}\}", text))
    assert used == set(ACTION["inputs"])
    outputs = set(re.findall(r"\$\{\{ steps\.validate\.outputs\.([a-z-]+) \}\}", text))
    assert outputs == set(ACTION["outputs"])
    assert outputs == set(re.findall(r'echo "([a-z-]+)=', STEPS["Validate"]["run"]))


def test_the_workflow_uses_inputs_and_outputs_that_the_action_has() -> None:
    text = (CI_SAMPLES / "github-workflow.yml").read_text(encoding="utf-8")
    (job,) = read_yaml(CI_SAMPLES / "github-workflow.yml")["jobs"].values()
    (step,) = (s for s in job["steps"] if s.get("id") == "lora-quant")
    assert set(step["with"]) <= set(ACTION["inputs"])
    named = set(re.findall(r"steps\.lora-quant\.outputs\.([a-z-]+)", text))
    assert named <= set(ACTION["outputs"])


@pytest.mark.parametrize(
    "file", ["action.yml", ".pre-commit-hooks.yaml", "samples/ci/gitlab-ci.yml", "docs/ci.md"]
)
def test_options_exist(file: str) -> None:
    """Options of `lora-quant validate`, written `--report=sarif=x` or `--report sarif=x`."""
    text = (ROOT / file).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if "validate " in line or "options" in line]
    used = {option for line in lines for option in re.findall(r"(?<!-)--[a-z][a-z-]+", line)}
    if file != "samples/ci/gitlab-ci.yml":
        assert used, "finds no option any more: mend the pattern"
    assert used <= OPTIONS


def hook_patterns() -> list[re.Pattern[str]]:
    hooks = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    return [re.compile(hook["files"]) for hook in hooks]


@pytest.mark.parametrize(
    ("name", "is_ours"),
    [
        ("lora_config.yaml", True),
        ("a b/lora_config.dev.yml", True),
        ("a/lora_importer_config.yaml", True),
        ("lora_output_files.yaml", True),
        ("tone/adapter_config.json", True),
        ("attach_points.json", True),
        ("x.encodings", True),
        ("pack/pack.json", True),
        ("run_config_1.yaml", True),
        ("genie_config.json", True),
        ("my_adapter_config.json", False),
        ("package.json", False),
        ("config.yaml", False),
        ("lora_config.yaml.bak", False),
        ("encodings", False),
    ],
)
def test_hooks_run_on_our_files_alone(name: str, is_ours: bool) -> None:
    for pattern in hook_patterns():
        assert bool(pattern.search(name)) is is_ours


def test_hooks_know_every_kind_of_file_that_has_a_name_of_its_own() -> None:
    without = {"adapter-params", "report"}  # *.json of any name; made by a command, not kept
    for name, files in FILES.items():
        example = files.replace("*", "x")
        matched = all(pattern.search(example) for pattern in hook_patterns())
        assert matched is (name not in without), example


DOCS = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")


def test_editor_settings_in_the_docs_name_every_schema_and_its_files() -> None:
    (text,) = re.findall(r"^```json\n(.*?)^```$", DOCS, re.MULTILINE | re.DOTALL)
    settings = json.loads(text)
    folder = ".lora-quant-schemas/"
    pairs = {path.removeprefix(folder): files for path, files in settings["yaml.schemas"].items()}
    for entry in settings["json.schemas"]:
        (pairs[entry["url"].removeprefix("./" + folder)],) = entry["fileMatch"]
    assert pairs == {schema_file(name): files for name, files in FILES.items()}


def test_samples_in_the_docs_are_those_of_the_files() -> None:
    (settings,) = re.findall(r"^```toml\n(.*?)^```$", DOCS, re.MULTILINE | re.DOTALL)
    assert (CI_SAMPLES / "pyproject.toml").read_text(encoding="utf-8").endswith(settings)
    (step,) = re.findall(r"^```yaml\n(.*?)^```$", DOCS, re.MULTILINE | re.DOTALL)
    (job,) = read_yaml(CI_SAMPLES / "github-workflow.yml")["jobs"].values()
    assert yaml.safe_load(step)[0] in job["steps"]
    inputs = re.findall(r"`([a-z-]+)`", "".join(re.findall(r"^\| (`.*?) \|", DOCS, re.MULTILINE)))
    assert set(ACTION["inputs"]) <= set(inputs)


def test_the_gitlab_job_keeps_the_report_it_writes() -> None:
    (job,) = read_yaml(CI_SAMPLES / "gitlab-ci.yml").values()
    report = job["artifacts"]["reports"]["junit"]
    assert f"--report junit={report} " in job["script"][-1]
    assert Path(report).suffix == ".xml"
