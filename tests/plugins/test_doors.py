"""The doors: what is registered, and how what does not fit is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_quant import plugins
from lora_quant.errors import PluginError
from lora_quant.passes.runner import PIPELINE
from lora_quant.plugins import LOWERING_RULES, PASSES, TARGETS, Door

DOORS = {"targets": TARGETS, "passes": PASSES, "lowering_rules": LOWERING_RULES}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """What is registered is looked up once a process: forget it around each test."""
    for cached in (plugins.registered, plugins.load):
        cached.cache_clear()
    yield
    for cached in (plugins.registered, plugins.load):
        cached.cache_clear()
    sys.modules.pop("odd_plugin", None)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path for packages with metadata."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def add_package(folder: Path, group: str, entry: str, source: str) -> None:
    info = folder / "odd_plugin-2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-plugin\nVersion: 2.1\n")
    (info / "entry_points.txt").write_text(f"[lora_quant.{group}]\n{entry}\n")
    (folder / "odd_plugin.py").write_text(source)


@pytest.mark.parametrize("door", list(DOORS.values()), ids=list(DOORS))
def test_built_ins_come_through_the_door_under_their_own_name(door: Door) -> None:
    names = plugins.registered(door)
    assert names
    for name in names:
        loaded = plugins.load(door, name)
        assert getattr(loaded, door.name_attribute) == name
        assert isinstance(plugins.make(door, name), loaded)
    assert set(plugins.Instances(door)) == set(names)


def test_the_built_ins() -> None:
    assert set(plugins.registered(TARGETS)) >= {"qairt"}
    assert set(plugins.registered(LOWERING_RULES)) >= {"LORA"}
    assert set(plugins.registered(PASSES)) >= set(PIPELINE)


def test_an_unknown_name_lists_what_is_near() -> None:
    with pytest.raises(PluginError, match="there is no target named 'qiart'") as caught:
        plugins.load(TARGETS, "qiart")
    assert caught.value.hint == "did you mean 'qairt'?"


@pytest.mark.parametrize(
    ("group", "name", "source", "text"),
    [
        (
            "targets",
            "odd",
            "raise RuntimeError('no driver')",
            "the target 'odd' of odd-plugin 2.1 (odd_plugin:Odd) cannot be loaded: RuntimeError: "
            "no driver",
        ),
        (
            "targets",
            "odd",
            "Other = 1",
            "the target 'odd' of odd-plugin 2.1 (odd_plugin:Odd) cannot be loaded: AttributeError: "
            "module 'odd_plugin' has no attribute 'Odd'",
        ),
        (
            "targets",
            "odd",
            "Odd = 5",
            "the target 'odd' of odd-plugin 2.1 (odd_plugin:Odd) is int 5, expected a class",
        ),
        (
            "targets",
            "odd",
            "class Odd:\n    name = 'even'\n    def emit(self, c, f): ...\n",
            "the target 'odd' of odd-plugin 2.1 (odd_plugin:Odd) has name = 'even', expected 'odd'",
        ),
        (
            "targets",
            "odd",
            "class Odd:\n    name = 'odd'\n",
            "the target 'odd' of odd-plugin 2.1 (odd_plugin:Odd) lacks the method emit; expected "
            "emit",
        ),
        (
            "lowering_rules",
            "ODD",
            "class Odd:\n    kind = 'ODD'\n    def lower(self): ...\n",
            "the lowering rule 'ODD' of odd-plugin 2.1 (odd_plugin:Odd) lacks the method describe "
            "and default_scale; expected describe, default_scale, lower",
        ),
        (
            "passes",
            "odd",
            "class Odd:\n    name = 'odd'\n    requires = ()\n    def run(self, c): ...\n",
            "the pass 'odd' of odd-plugin 2.1 (odd_plugin:Odd) lacks ensures; expected requires, "
            "ensures as class attributes",
        ),
        (
            "targets",
            "odd",
            "class Odd:\n    name = 'odd'\n    def emit(self, c, f): ...\n"
            "    def __init__(self, port): ...\n",
            "the target 'odd' of odd-plugin 2.1 (odd_plugin:Odd) cannot be made: TypeError: "
            "Odd.__init__() missing 1 required positional argument: 'port'",
        ),
    ],
    ids=["raises", "absent", "no class", "name", "no emit", "no describe", "no ensures", "options"],
)
def test_a_broken_plugin_names_its_owner_and_what_was_expected(
    group: str, name: str, source: str, text: str, install: Path
) -> None:
    add_package(install, group, f"{name} = odd_plugin:Odd", source)
    with pytest.raises(PluginError) as caught:
        plugins.make(DOORS[group], name)
    assert caught.value.message == text


def test_a_broken_plugin_that_is_not_used_does_no_harm(install: Path) -> None:
    add_package(install, "targets", "odd = odd_plugin:Odd", "raise RuntimeError('no driver')")
    assert "odd" in plugins.registered(TARGETS)
    assert plugins.load(TARGETS, "qairt").name == "qairt"


def test_two_packages_that_claim_one_name(install: Path) -> None:
    add_package(install, "targets", "qairt = odd_plugin:Odd", "")
    with pytest.raises(PluginError) as caught:
        plugins.load(TARGETS, "qairt")
    assert "two packages register the target 'qairt'" in caught.value.message
    assert "odd-plugin 2.1 (odd_plugin:Odd)" in caught.value.message
    assert "lora-quant " in caught.value.message
    assert "(lora_quant.targets.qairt.target:QairtTarget)" in caught.value.message
    assert caught.value.hint == "uninstall one of them, or rename its entry point"


def test_nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "entry_points", lambda group: ())
    with pytest.raises(PluginError, match="not even a built-in one") as caught:
        plugins.registered(TARGETS)
    assert caught.value.hint is not None
    assert "pip install -e ." in caught.value.hint
