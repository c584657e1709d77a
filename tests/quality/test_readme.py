"""What the README says is run: its commands, its configuration, its Python, its tree of files."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.quality.paths import ROOT, run_python

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md"), *(ROOT / "samples").glob("**/*.md")]
)


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def commands(program: str) -> list[list[str]]:
    """Every shell command of the README that runs `program`, as words."""
    lines = "".join(blocks("bash")).splitlines()
    words = [shlex.split(line) for line in lines if line.strip()]
    return [word[1:] for word in words if Path(word[0]).name == program]


@pytest.mark.parametrize("words", commands("lora-quant"), ids=" ".join)
def test_commands_and_options_exist(words: list[str]) -> None:
    from lora_quant.cli.main import cli

    name, *arguments = words
    assert name in cli.commands, f"lora-quant has no command {name}"
    known = {option for p in cli.commands[name].params for option in (*p.opts, *p.secondary_opts)}
    assert known.issuperset(a for a in arguments if a.startswith("-"))


def test_rules_that_are_named_exist() -> None:
    from lora_quant.validation.selection import parse_selectors

    text = README + (ROOT / "docs/ci.md").read_text(encoding="utf-8")
    named = re.findall(r"--(?:explain|select|ignore) ([a-z/,-]+)", text)
    assert parse_selectors(named) >= {"pack/hash", "device/block-size"}


def test_every_command_is_in_the_readme() -> None:
    from lora_quant.cli.main import cli

    assert {words[0] for words in commands("lora-quant")} == set(cli.commands)


def test_options_in_the_text_exist() -> None:
    from lora_quant.cli.main import cli

    known = {
        option
        for command in cli.commands.values()
        for p in command.params
        for option in (*p.opts, *p.secondary_opts)
    } | {"--help", "--version"}
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    prose += (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    assert known.issuperset(re.findall(r"`(--[a-z-]+)[ `]", prose))


def test_make_targets_exist_and_do_what_the_plain_lines_do() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for (target,) in commands("make"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    demo = [line for line in makefile.splitlines() if "bin/lora-quant" in line]
    written = [shlex.split(line)[1:] for line in demo]
    assert written == [w for w in commands("lora-quant") if "demo-output" in w]


def test_ci_runs_the_test_command() -> None:
    assert ["test"] in commands("make")
    assert "\n    make test\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_extras_of_the_plain_lines_exist() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.findall(r"'\.\[(\w+)\]'", "".join(blocks("bash")))
    assert extras == ["runtime", "test"]
    for extra in extras:
        assert re.search(rf"^{extra} = \[$", project, re.MULTILINE), extra


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose `samples/tiny_llama` is a copy of the sample."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "samples" / "tiny_llama", folder / "samples" / "tiny_llama")
    return folder


def test_configuration_builds_the_tree_of_files(sample: Path) -> None:
    from lora_quant import build

    (text,) = blocks("yaml", section("Configuration"))
    config = sample / "samples" / "tiny_llama" / "readme.yaml"
    config.write_text(text, encoding="utf-8")
    output = sample / "OUT"
    build(config, output)
    (tree,) = blocks("text", section("What a pack holds"))
    shown = [line.split()[0] for line in tree.splitlines()]
    written = [p.relative_to(sample).as_posix() for p in output.rglob("*") if p.is_file()]
    assert sorted(written) == sorted(shown)


def test_python_example_runs(sample: Path) -> None:
    (text,) = blocks("python", section("Python"))
    script = sample / "example.py"
    script.write_text(text, encoding="utf-8")
    done = run_python(str(script), cwd=sample)
    assert done.returncode == 0, done.stdout
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names == ["base", "tone", "legal", "style", "both"]


def test_session_example_runs(sample: Path) -> None:
    """The same inputs with a use case, with the use case at another strength, and without any."""
    from lora_quant import BuildOptions, build

    config = sample / "samples" / "tiny_llama" / "lora_config.yaml"
    folder = sample / "switching"
    build(config, folder / "OUT", BuildOptions(targets=("onnxruntime",)))
    np.savez(folder / "inputs.npz", input_ids=np.arange(16, dtype=np.int64)[np.newaxis])
    (text,) = blocks("python", section("Targets"))
    script = folder / "example.py"
    different = "len({run['logits'].tobytes() for run in (both, softened, plain)})"
    script.write_text(f"{text}print({different})\n", encoding="utf-8")
    done = run_python(str(script), cwd=folder)
    assert done.returncode == 0, done.stdout
    assert done.stdout.split() == ["3"]


def test_first_paragraph_has_five_lines() -> None:
    assert len(README.split("\n\n")[1].splitlines()) == 5


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text)
    missing = [link for link in links if not (document.parent / link).exists()]
    assert not missing, f"{document.name} links to what is not there"


def test_architecture_names_the_passes_in_order() -> None:
    from lora_quant.passes.runner import PIPELINE

    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    steps = re.findall(r"^   - `([a-z-]+)`:", text, re.MULTILINE)
    assert tuple(steps) == PIPELINE


def test_architecture_names_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = [p.parent.name for p in (ROOT / "lora_quant").glob("*/__init__.py")]
    missing = [room for room in rooms if f"| `{room}/` |" not in text]
    assert not missing
