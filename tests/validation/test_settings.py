"""The settings file: where it is found, what it may hold, and how what is wrong is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_quant.config.settings import (
    MAX_BYTES,
    NO_SETTINGS,
    Settings,
    ValidateSettings,
    find_settings,
    read_settings,
)
from lora_quant.errors import ConfigError, InputMissingError

FULL = """
select = ["pack", "device"]
ignore = ["pack/stray-file"]
fail-on = "warning"
base = "model/base.onnx"
exclude = ["drafts"]
jobs = 2
"""
EXPECTED = Settings(
    validation=ValidateSettings(
        select=["pack", "device"],
        ignore=["pack/stray-file"],
        fail_on="warning",
        base=Path("model/base.onnx"),
        exclude=["drafts"],
        jobs=2,
    )
)


def write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_every_setting_in_both_files(tmp_path: Path) -> None:
    own = write(tmp_path, "lora-quant.toml", f"[validate]{FULL}")
    project = write(tmp_path, "pyproject.toml", f"[tool.lora-quant.validate]{FULL}")
    assert read_settings(own).settings == EXPECTED
    assert read_settings(project).settings == EXPECTED
    assert str(read_settings(project).where("validate.jobs")).endswith(
        "pyproject.toml, field 'tool.lora-quant.validate.jobs'"
    )


def test_the_nearest_file_counts_and_nothing_is_merged(tmp_path: Path) -> None:
    write(tmp_path, "lora-quant.toml", "[validate]\njobs = 1\n")
    near = write(tmp_path / "a", "pyproject.toml", "[tool.lora-quant.validate]\nfail-on='note'\n")
    write(tmp_path / "a" / "b", "pyproject.toml", "[tool.other]\nx = 1\n")
    found = find_settings(tmp_path / "a" / "b")
    assert (found.file, found.folder) == (near, tmp_path / "a")
    assert found.settings.validation == ValidateSettings(fail_on="note")
    own = write(tmp_path / "a", "lora-quant.toml", "")
    assert find_settings(tmp_path / "a").file == own


def test_without_a_file_everything_has_its_default(tmp_path: Path) -> None:
    assert NO_SETTINGS.settings == Settings()
    assert NO_SETTINGS.settings.validation.fail_on == "error"
    assert find_settings(tmp_path).settings == Settings()


@pytest.mark.parametrize(
    ("text", "message", "field", "hint"),
    [
        ("[validat]", "unknown key 'validat'", "validat", "did you mean 'validate'?"),
        ("jobs = 2", "unknown key 'jobs'", "jobs", "known: 'validate'"),
        ("[validate]\nselct = []", "'selct'", "validate.selct", "did you mean 'select'?"),
        ("[validate]\nfail_on = 'note'", "'fail_on'", "validate.fail_on", "'fail-on'"),
        ("[validate]\nfail-on = 'never'", "'error', 'warning' or 'note'", "validate.fail-on", ""),
        ("[validate]\nselect = 'pack'", "expected a list", "validate.select", "[ ]"),
        ("[validate]\nselect = [1]", "expected text", "validate.select[0]", "quotes"),
        ("[validate]\njobs = 0", "at least 1", "validate.jobs", ""),
        ("[validate]\njobs = '2'", "expected a whole number", "validate.jobs", "quotes"),
        ("[validate]\njobs = nan", "expected a whole number", "validate.jobs", ""),
        ("[validate]\nbase = ''", "expected a path", "validate.base", ""),
        ("validate = 3", "expected an object", "validate", ""),
        ("[validate]\nfail-on = 1979-05-27", "got a date", "validate.fail-on", ""),
    ],
)
def test_unknown_keys_and_wrong_values_are_told_with_file_and_key(
    text: str, message: str, field: str, hint: str, tmp_path: Path
) -> None:
    path = write(tmp_path, "lora-quant.toml", text)
    with pytest.raises(ConfigError) as caught:
        read_settings(path)
    error = caught.value
    assert message in error.message
    assert (error.where.file, error.where.field) == (path, field)
    assert hint in (error.hint or "")


def test_keys_of_a_pyproject_are_told_with_their_table(tmp_path: Path) -> None:
    path = write(tmp_path, "pyproject.toml", "[tool.lora-quant.validate]\nselct = []")
    with pytest.raises(ConfigError) as caught:
        find_settings(tmp_path)
    assert (caught.value.where.file, caught.value.where.field) == (
        path,
        "tool.lora-quant.validate.selct",
    )
    path.write_text("[tool]\nlora-quant = 3\n")
    with pytest.raises(ConfigError) as caught:
        find_settings(tmp_path)
    assert caught.value.where.field == "tool.lora-quant"


@pytest.mark.parametrize(
    ("content", "message", "line"),
    [
        (b"[validate\n", "the text is not TOML: ", 1),
        (b"\n[validate]\njobs = \n", "the text is not TOML: Invalid value", 3),
        (b"a = 1\na = 2\n", "the text is not TOML: ", 2),
        (b"a = '\xff'", "the text is not TOML: 'utf-8' codec", None),
        (b"a = " + b"[" * 20_000, "", None),
        (b"a = " + b"9" * 5000, "the text is not TOML: Exceeds the limit", None),
        (b"#" * (MAX_BYTES + 1), "the file has more than 1,048,576 bytes", None),
    ],
    ids=["header", "value", "twice", "bytes", "depth", "digits", "size"],
)
def test_what_is_no_toml_is_refused(
    content: bytes, message: str, line: int | None, tmp_path: Path
) -> None:
    path = tmp_path / "lora-quant.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        find_settings(tmp_path)
    assert message in caught.value.message
    assert (caught.value.where.file, caught.value.where.line) == (path, line)
    assert "--no-config" in (caught.value.hint or "")


def test_a_file_that_was_named_has_to_be_there_and_hold_settings(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="cannot be read"):
        read_settings(tmp_path / "gone.toml")
    with pytest.raises(InputMissingError, match="cannot be read: Is a directory"):
        read_settings(tmp_path)
    other = write(tmp_path, "pyproject.toml", "[project]\nname = 'x'\n")
    with pytest.raises(ConfigError, match=r"there is no table \[tool.lora-quant\]"):
        read_settings(other)


def test_a_table_with_an_underscore_is_not_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "pyproject.toml", "[tool.lora_quant.validate]\nfail-on = 'note'\n")
    with pytest.raises(ConfigError, match=r"\[tool.lora_quant\] is read by nobody") as caught:
        find_settings(tmp_path)
    assert caught.value.hint == "write it with a hyphen: [tool.lora-quant]"
