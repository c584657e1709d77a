"""The architecture of the HTP: recorded in the pack, and taken from there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_quant.api import build
from lora_quant.config.manifest import read_manifest
from lora_quant.config.options import BuildOptions
from lora_quant.engines.qnn import chosen_arch
from lora_quant.errors import ConfigError
from lora_quant.runtime.session.graph import open_session_graph
from lora_quant.runtime.session.pack_files import open_session_pack
from lora_quant.runtime.verify.verify import verify
from tests.sample import copy_sample, keep_use_cases

Opened = tuple[str, str]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built for the architecture 75; a file stands for what is compiled."""
    config = keep_use_cases(copy_sample(tmp_path_factory.mktemp("built")), ["base", "tone"])
    output = config.parents[1] / "out"
    return build(config, output, BuildOptions(targets=("qnn",), htp_arch="75")).output


def test_the_manifest_has_the_architecture_of_the_build(pack: Path) -> None:
    (target,) = read_manifest(pack).targets
    assert target.htp_arch == "75"


def test_other_targets_have_none(tmp_path: Path) -> None:
    config = keep_use_cases(copy_sample(tmp_path), ["base", "tone"])
    output = build(config, tmp_path / "out", BuildOptions()).output
    assert "htp_arch" not in json.loads((output / "pack.json").read_text())["targets"][0]


@pytest.mark.parametrize(
    ("asked", "built", "found"),
    [(None, "75", "75"), ("79", "75", "79"), (None, None, "73"), ("69", "68", "69")],
)
def test_what_is_asked_for_wins_over_what_was_built(
    asked: str | None, built: str | None, found: str
) -> None:
    assert chosen_arch(asked, built) == found


def test_an_unknown_architecture_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match="no architecture '74'") as caught:
        chosen_arch("74", None)
    assert caught.value.hint is not None
    assert "73" in caught.value.hint


def test_a_graph_with_products_of_16_bits_is_not_for_older_architectures() -> None:
    with pytest.raises(ConfigError, match="built for the HTP architecture 73, got 69") as caught:
        chosen_arch("69", "73")
    assert caught.value.hint == "build it with --htp-arch 69"


class Seen(Exception):
    """Ends a run where the engine would be asked."""


def opened(monkeypatch: pytest.MonkeyPatch, pack: Path, asked: str | None) -> Opened:
    found: list[Opened] = []

    def engine(path: Path, *, htp_arch: str) -> Any:
        found.append((path.name, htp_arch))
        raise Seen

    monkeypatch.setattr("lora_quant.runtime.session.graph.open_on_htp", engine)
    files = open_session_pack(pack, target=None, device="htp", integrity="quick")
    compiled = SimpleNamespace(
        target=files.target,
        require=files.require,
        find=lambda role: Path("model_ctx.onnx") if role == "context" else None,
    )
    with pytest.raises(Seen):
        open_session_graph(compiled, "htp", None, asked)  # type: ignore[arg-type]
    return found[0]


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        (None, ("model_ctx.onnx", "75")),
        ("75", ("model_ctx.onnx", "75")),
        ("79", ("model.onnx", "79")),
    ],
)
def test_a_session_takes_what_is_compiled_for_its_architecture(
    asked: str | None, wanted: Opened, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert opened(monkeypatch, pack, asked) == wanted


@pytest.mark.parametrize(("asked", "wanted"), [(None, "75"), ("79", "79")])
def test_verify_takes_the_architecture_of_the_pack(
    asked: str | None, wanted: str, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def run(_model: Path, _feeds: Any, *, htp_arch: str) -> Any:
        seen.append(htp_arch)
        raise Seen

    put: Callable[[str, Any], None] = monkeypatch.setattr
    put("lora_quant.runtime.verify.qnn.unavailable_reason", lambda: None)
    put("lora_quant.runtime.verify.htp_runs.run_on_htp", run)
    with pytest.raises(Seen):
        verify(pack, htp_arch=asked)
    assert seen == [wanted]
