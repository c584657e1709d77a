"""`lora_config.yaml`: paths, rules between its parts, and the words of its errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_quant.config.lora_config import (
    AdapterConfig,
    AdapterParamsConfig,
    LoraConfig,
    UseCaseInputConfig,
    read_lora_config,
)
from lora_quant.errors import ConfigError, InputMissingError

HEAD = """\
adapter:
  - name: tone
    lora_config: tone.json
  - {name: legal, lora_config: [legal, {name: x, rank: 8, alpha: 16, target_modules: [q]}]}
use-case:
"""
BOTH = (
    "  - {name: both, adapter_names: [tone, legal], adapter_alphas: [1, 0.6], "
    "model_name: ../b.onnx%s}\n"
)


def read(tmp_path: Path, text: str) -> LoraConfig:
    file = tmp_path / "config" / "lora.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return read_lora_config(file)


def refused(tmp_path: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    return caught.value


def use_case(**changes: object) -> UseCaseInputConfig:
    given: dict[str, object] = {
        "name": "one",
        "adapter_names": ["tone"],
        "adapter_alphas": [1.0],
        "model": Path("m.onnx"),
    }
    return UseCaseInputConfig(**{**given, **changes})  # type: ignore[arg-type]


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = read(tmp_path, HEAD + BOTH % ", quant_overrides: /abs/e.json")
    assert config.adapter[0].adapter_lora_config == [tmp_path / "config" / "tone.json"]
    assert config.adapter[1].adapter_lora_config == [
        tmp_path / "config" / "legal",
        AdapterParamsConfig(name="x", rank=8, alpha=16, target_modules=["q"]),
    ]
    assert config.use_cases[0].model == tmp_path / "b.onnx"
    assert config.use_cases[0].encodings == Path("/abs/e.json")
    assert config.use_cases[0].adapter_alphas == [1.0, 0.6]


def test_parent_folders_are_kept_where_a_link_changes_their_meaning(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    config = read(tmp_path, HEAD + BOTH.replace("../b.onnx", "link/../b.onnx") % "")
    assert config.use_cases[0].model == tmp_path / "config" / "link" / ".." / "b.onnx"


@pytest.mark.parametrize("text", ["null", "~", "'null'", "/dev/null", "lists/null"])
def test_spellings_of_no_updatable_tensors(text: str, tmp_path: Path) -> None:
    config = read(tmp_path, HEAD + BOTH % f", quant_updatable_tensors: {text}")
    assert config.use_cases[0].quant_updatable_tensors is None
    assert config.use_cases[0].updatable_tensors_file() is None


def test_a_missing_list_of_updatable_tensors_means_none_given(tmp_path: Path) -> None:
    one = read(tmp_path, HEAD + BOTH % ", quant_updatable_tensors: list.txt").use_cases[0]
    assert one.quant_updatable_tensors == tmp_path / "config" / "list.txt"
    assert one.updatable_tensors_file() is None
    (tmp_path / "config" / "list.txt").touch()
    assert one.updatable_tensors_file() == tmp_path / "config" / "list.txt"


def test_unused_adapters_are_legal_and_told(tmp_path: Path) -> None:
    text = HEAD + "  - {name: u, adapter_names: [legal], adapter_alphas: [1], model_name: m}\n"
    assert read(tmp_path, text).unused_adapters() == ("tone",)
    assert read(tmp_path, HEAD + BOTH % "").unused_adapters() == ()


def test_unknown_adapter_is_named_with_the_close_one(tmp_path: Path) -> None:
    error = refused(tmp_path, HEAD + (BOTH % "").replace("[tone, legal]", "[tone, leagl]"))
    assert error.message == (
        "use-case[0].adapter_names[1]: the use case 'both' names the unknown adapter 'leagl'"
    )
    assert (error.where.line, error.where.column) == (6, 40)
    assert error.where.field == "use-case[0].adapter_names[1]"
    assert error.hint == "did you mean 'legal'?"


def test_one_strength_per_adapter(tmp_path: Path) -> None:
    error = refused(tmp_path, HEAD + (BOTH % "").replace("[1, 0.6]", "[1]"))
    assert error.message == "use-case[0].adapter_alphas: 1 strengths for 2 adapter names"
    assert error.hint == "give one strength per name, in the same order; 1.0 is as trained"


def test_an_adapter_appears_once_in_a_use_case(tmp_path: Path) -> None:
    error = refused(tmp_path, HEAD + (BOTH % "").replace("[tone, legal]", "[tone, tone]"))
    assert "the adapter 'tone' appears twice in the use case 'both'" in error.message


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("both", "is already taken"),
        ("BOTH", "makes the same folder as 'both'"),
    ],
)
def test_use_cases_need_folders_of_their_own(name: str, problem: str, tmp_path: Path) -> None:
    again = (BOTH % "").replace("name: both", f"name: {name}")
    error = refused(tmp_path, HEAD + BOTH % "" + again)
    assert error.message == f"use-case[1].name: the use case name {name!r} {problem}"
    assert error.where.line == 7


def test_composed_and_decomposed_names_are_one_folder() -> None:
    adapter = AdapterConfig(name="tone", adapter_lora_config=["a"])
    with pytest.raises(ConfigError, match="makes the same folder"):
        LoraConfig(adapter=[adapter], use_cases=[use_case(name="é"), use_case(name="e\u0301")])


def test_adapter_names_are_unique(tmp_path: Path) -> None:
    error = refused(tmp_path, HEAD.replace("name: legal", "name: tone") + BOTH % "")
    assert "adapter[1].name: the adapter name 'tone' is already taken" in error.message


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("a/b", "holds the character '/'"),
        ("a\\b", r"holds the character '\\'"),
        ("..", "begins with a dot"),
        (".git", "begins with a dot"),
        ("a.", "ends with a dot or a space"),
        ("a ", "ends with a dot or a space"),
        ("a\tb", r"holds the character '\t'"),
        ("AUX", "is reserved by Windows"),
        ("com1.txt", "is reserved by Windows"),
        ("", "is empty"),
        ("é" * 128, "is longer than 255 bytes"),
    ],
)
def test_names_that_cannot_be_folders(name: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        use_case(name=name)
    assert caught.value.message == f"name: the name {name!r} {problem}"
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("it becomes a folder")


@pytest.mark.parametrize("name", ["both", "Größe 2.5", "日本語", "com", "console", "a+b"])
def test_names_that_can_be_folders(name: str) -> None:
    assert use_case(name=name).name == name


def test_all_problems_are_listed_in_the_order_of_the_file(tmp_path: Path) -> None:
    error = refused(
        tmp_path,
        HEAD.replace("rank: 8", "rank: 0, foo: 1")
        + "  - {nmae: u, adapter_names: [1], adapter_alphas: ['1'], model_name: m}\n",
    )
    assert error.message.splitlines() == [
        "6 problems",
        "  line 4:50: adapter[1].lora_config[1].rank: expected a number of at least 1, "
        "got the number 0",
        "  line 4:59: adapter[1].lora_config[1].foo: unknown key 'foo' "
        "(known: 'alpha', 'name', 'rank', 'target_modules')",
        "  line 6:5: use-case[0].name: the key is missing (add it; it has no default)",
        "  line 6:6: use-case[0].nmae: unknown key 'nmae' (did you mean 'name'?)",
        "  line 6:31: use-case[0].adapter_names[0]: expected text, got the number 1 "
        "(put it in quotes to make it text)",
        "  line 6:52: use-case[0].adapter_alphas[0]: expected a number, got the text '1' "
        "(remove the quotes)",
    ]
    assert error.where.line == 4
    assert "pydantic" not in str(error)


def test_the_hyphen_of_use_case_is_suggested(tmp_path: Path) -> None:
    error = refused(tmp_path, (HEAD + BOTH % "").replace("use-case", "use_case"))
    assert "unknown key 'use_case' (did you mean 'use-case'?)" in error.message


def test_a_document_that_is_no_object(tmp_path: Path) -> None:
    assert refused(tmp_path, "- a\n").message == "expected an object, got a list"


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="the file does not exist"):
        read_lora_config(tmp_path / "none.yaml")


def test_python_names_are_used_in_errors_of_python_calls() -> None:
    with pytest.raises(ConfigError) as caught:
        LoraConfig(adapter=[AdapterConfig(name="a", adapter_lora_config=["x"])], use_cases=[])
    assert caught.value.message == "use_cases: expected at least 1 item(s), got an empty list"
    with pytest.raises(ConfigError) as caught:
        LoraConfig(
            adapter=[AdapterConfig(name="a", adapter_lora_config=["x"])], use_cases=[use_case()]
        )
    assert caught.value.where.field == "use_cases[0].adapter_names[0]"
    with pytest.raises(ConfigError, match="did you mean 'encodings'"):
        use_case(encoding="e")


def test_a_single_source_becomes_a_list_of_paths() -> None:
    one = AdapterConfig(name="a", adapter_lora_config="x/y")  # type: ignore[arg-type]
    assert one.adapter_lora_config == [Path("x/y")]


@pytest.mark.parametrize("alpha", [16, 0.5])
def test_alpha_keeps_its_type(alpha: float) -> None:
    params = AdapterParamsConfig(name="a", rank=1, alpha=alpha, target_modules=["q"])
    assert type(params.alpha) is type(alpha)
    assert params.model_dump()["alpha"] == alpha


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_numbers_are_finite(alpha: float) -> None:
    with pytest.raises(ConfigError, match=r"adapter_alphas\[0\]: expected a finite number"):
        use_case(adapter_alphas=[alpha])
    with pytest.raises(ConfigError, match="alpha: expected a finite number"):
        AdapterParamsConfig(name="a", rank=1, alpha=alpha, target_modules=["q"])


def test_numbers_fit_a_double() -> None:
    text = "alpha: expected a finite number, got an integer of 1329 bits"
    with pytest.raises(ConfigError, match=text):
        AdapterParamsConfig(name="a", rank=1, alpha=10**400, target_modules=["q"])
    with pytest.raises(ConfigError, match="expected a number, got an integer of 1329 bits"):
        use_case(adapter_alphas=[10**400])


def test_models_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        use_case().name = "other"
