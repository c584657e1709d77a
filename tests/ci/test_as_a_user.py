"""The hooks, the action and the GitLab job as a user has them: installed from this checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from junitparser import JUnitXml

from tests.ci.steps import CI_SAMPLES, path_with_python, read_yaml, run_script, run_step
from tests.command_line import environment
from tests.quality.paths import ROOT
from tests.sample import CONFIG

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="the child is a shell script"),
]

PARTS = ("lora_quant", "schemas", "pyproject.toml", "README.md", "LICENSE")
MANIFEST = ".pre-commit-hooks.yaml"


def git(folder: Path, *arguments: str, env: Mapping[str, str]) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=env, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def git_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings of the person who runs the tests play no part."""
    home = tmp_path_factory.mktemp("cache")
    who = {"NAME": "A User", "EMAIL": "user@example.org"}
    return environment(
        PRE_COMMIT_HOME=str(home),
        GIT_CONFIG_GLOBAL=os.devnull,
        GIT_CONFIG_SYSTEM=os.devnull,
        **{f"GIT_{role}_{key}": v for role in ("AUTHOR", "COMMITTER") for key, v in who.items()},
    )


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory, git_environment: dict[str, str]) -> Path:
    """This checkout as a repository of its own, with what is not committed yet."""
    folder = tmp_path_factory.mktemp("the tool")
    for name in (*PARTS, MANIFEST):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(
                source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
            )
        else:
            shutil.copy(source, folder / name)
    git(folder, "init", "--quiet", env=git_environment)
    git(folder, "add", ".", env=git_environment)
    git(folder, "commit", "--quiet", "-m", "all", env=git_environment)
    return folder


@pytest.fixture
def project(tmp_path: Path, tool: Path, git_environment: dict[str, str]) -> Path:
    """A repository whose pre-commit configuration is the sample's, with the sample's files."""
    folder = tmp_path / "a project"
    shutil.copytree(CONFIG.parent, folder / "tiny llama")
    for config in (folder / "tiny llama").glob("lora_config_*.yaml"):
        config.unlink()  # some need an option of `build`, which is a warning
    text = (CI_SAMPLES / "pre-commit-config.yaml").read_text(encoding="utf-8")
    revision = git(tool, "rev-parse", "HEAD", env=git_environment)
    text = text.replace("https://github.com/OWNER/lora-quant", f"'{tool}'")
    text = text.replace("v0.1.0", revision).replace("      # - id:", "      - id:")
    (folder / ".pre-commit-config.yaml").write_text(text, encoding="utf-8")
    git(folder, "init", "--quiet", env=git_environment)
    git(folder, "add", ".", env=git_environment)
    return folder


def commit(project: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    git(project, "add", ".", env=env)
    return subprocess.run(
        ["git", "commit", "-m", "a change"],
        cwd=project,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def test_hooks_let_pass_what_is_fine_and_stop_what_is_broken(
    project: Path, git_environment: dict[str, str]
) -> None:
    install = [sys.executable, "-m", "pre_commit", "install"]
    subprocess.run(install, cwd=project, env=git_environment, check=True, capture_output=True)
    done = commit(project, git_environment)
    assert done.returncode == 0, done.stderr
    shown = [line for line in done.stderr.splitlines() if line.startswith("lora-quant validate")]
    assert [line.endswith("Passed") for line in shown] == [True, True], done.stderr

    config = project / "tiny llama" / "lora_config.yaml"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("adapter_names", "adapter_nmaes", 1), encoding="utf-8")
    done = commit(project, git_environment)
    assert done.returncode == 1
    assert done.stderr.count("adapter_nmaes") >= 2, done.stderr  # both hooks
    assert "tiny llama/lora_config.yaml:" in done.stderr

    config.write_text(text, encoding="utf-8")
    (project / "notes.yaml").write_text("adapter: [", encoding="utf-8")  # not of our files
    done = commit(project, git_environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("(no files to check)Skipped") == 2


def test_the_action_installs_itself_and_validates(tmp_path: Path) -> None:
    temp, checkout = tmp_path / "runner temp", tmp_path / "check out"
    temp.mkdir()
    shutil.copytree(CONFIG.parent, checkout / "tiny llama")
    path = path_with_python(tmp_path / "programs")
    done, _ = run_step("Install lora-quant", checkout, temp, {}, PATH=path)
    assert done.returncode == 0, done.stderr
    inputs = {"paths": "tiny llama", "sarif-file": "out.sarif"}
    done, outputs = run_step("Validate", checkout, temp, inputs)
    assert (done.returncode, outputs["ok"]) == (0, "true"), done.stdout + done.stderr
    config = checkout / "tiny llama" / "lora_config.yaml"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("adapter_names", "adapter_nmaes", 1), encoding="utf-8")
    done, outputs = run_step("Validate", checkout, temp, inputs)
    assert (done.returncode, outputs["ok"]) == (1, "false")
    results = json.loads((checkout / "out.sarif").read_text(encoding="utf-8"))["runs"][0]["results"]
    assert any("adapter_nmaes" in result["message"]["text"] for result in results)


def test_the_gitlab_job_validates_and_leaves_its_report(tmp_path: Path) -> None:
    (job,) = read_yaml(CI_SAMPLES / "gitlab-ci.yml").values()
    shutil.copytree(CONFIG.parent, tmp_path / "tiny llama")
    variables = {
        "PATH": path_with_python(tmp_path / ".programs"),
        "LORA_QUANT": str(ROOT),
        "LORA_QUANT_PATH": "tiny llama",
    }
    assert set(variables) - {"PATH"} <= set(job["variables"])
    done = run_script(job["script"], tmp_path, variables)
    assert done.returncode == 0, done.stdout + done.stderr
    report = tmp_path / job["artifacts"]["reports"]["junit"]
    assert JUnitXml.fromfile(str(report)).failures == 0
    config = tmp_path / "tiny llama" / "lora_config.yaml"
    config.write_text("adapter: [", encoding="utf-8")
    done = run_script(job["script"][-1:], tmp_path, variables)
    assert done.returncode == 1
    document = JUnitXml.fromfile(str(report))
    assert document.failures == 1
