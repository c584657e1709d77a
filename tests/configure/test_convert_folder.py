"""What is made of folders that other tools left: pairing by content, by statements, by names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from lora_quant.api import build
from lora_quant.config.lora_config import read_lora_config
from lora_quant.configure.convert import convert_folder
from lora_quant.configure.draft import Drafted
from lora_quant.configure.written_config import config_text
from lora_quant.errors import ConfigError, InputMissingError
from lora_quant.findings import Severity
from tests.configure.folders import EXPORTED, PEFT, copied, facts, read
from tests.sample import CONFIG, SAMPLE, Document, edit_json, edit_yaml

ROOT = Path(__file__).parents[1]
_PER_STEP = ("scale", "offset")


def rules(draft: Drafted) -> list[str]:
    return sorted({f.rule for f in draft.findings if f.rule.startswith("convert/")})


def messages(draft: Drafted, rule: str) -> list[str]:
    return [f.message for f in draft.findings if f.rule == rule]


def made(folder: Path, *, check: bool = False) -> dict[str, object]:
    draft = convert_folder(folder, check=check)
    assert draft.config is not None, draft.findings
    return facts(read(config_text(draft.config, folder, draft.notes), folder), folder)


def test_use_case_graphs_give_the_hand_written_configuration(tmp_path: Path) -> None:
    folder = copied(tmp_path / "folder", [*EXPORTED, "attach_points.json"])
    draft = convert_folder(folder)
    assert draft.ok
    assert rules(draft) == []
    expected = read_lora_config(SAMPLE / "lora_config_exported.yaml")
    assert made(folder) == facts(expected, SAMPLE)


def test_the_written_file_builds_the_same_weights(tmp_path: Path) -> None:
    folder = copied(tmp_path / "folder", [*EXPORTED, "attach_points.json"])
    draft = convert_folder(folder)
    assert draft.config is not None
    path = folder / "lora_config.yaml"
    path.write_text(config_text(draft.config, folder, draft.notes), encoding="utf-8")
    build(path, tmp_path / "ours")
    build(SAMPLE / "lora_config_exported.yaml", tmp_path / "theirs")
    for use_case in ("base", "tone", "legal", "style", "both"):
        for file in ("lora_weights.safetensors", "quant_overrides.json"):
            ours, theirs = (
                (tmp_path / one / "qairt" / use_case / file).read_bytes()
                for one in ("ours", "theirs")
            )
            assert ours == theirs, (use_case, file)


def test_the_strength_of_a_mix_is_read_from_its_scales(tmp_path: Path) -> None:
    folder = copied(tmp_path / "folder", ["model", "use_case_graphs", "adapter_params"])
    use_cases = made(folder)["use cases"]
    assert isinstance(use_cases, dict)
    assert use_cases["both"][:2] == (("tone", "legal"), (1.0, 0.6))


def test_content_wins_over_names(tmp_path: Path) -> None:
    folder = copied(tmp_path / "folder", EXPORTED)
    encodings = folder / "encodings"
    (encodings / "tone.encodings").rename(encodings / "swap")
    (encodings / "legal.encodings").rename(encodings / "tone.encodings")
    (encodings / "swap").rename(encodings / "legal.encodings")
    draft = convert_folder(folder, check=False)
    assert draft.config is not None
    given = {u.name: u.encodings for u in draft.config.use_cases}
    assert given["tone"] == encodings / "legal.encodings"
    assert given["legal"] == encodings / "tone.encodings"
    assert len(messages(draft, "convert/name-contradicted")) == 2


def test_blockwise_encodings_of_factors_go_to_their_graphs(tmp_path: Path) -> None:
    """1.0.0 has the scales of all channels and blocks in one row: they do not tell the rank."""

    def in_blocks(document: Document) -> None:
        for entry in document["param_encodings"]:
            if entry["name"].endswith("lora_A.weight"):
                entry.update(enc_type="PER_BLOCK", block_size=16)
                entry.update({key: [v for v in entry[key] for _ in "1234"] for key in _PER_STEP})

    folder = copied(tmp_path / "folder", EXPORTED)
    for name in ("tone", "legal", "style", "both"):
        edit_json(folder / "encodings" / f"{name}.encodings", in_blocks)
    draft = convert_folder(folder, check=False)
    assert draft.config is not None
    given = {u.name: u.encodings and u.encodings.stem for u in draft.config.use_cases}
    assert given == {name: name for name in ("base", "tone", "legal", "style", "both")}


def test_names_that_tell_nothing_are_not_needed_where_content_decides(tmp_path: Path) -> None:
    folder = copied(tmp_path / "folder", ["model", "use_case_graphs", "adapter_params"])
    for number, name in enumerate(("both", "tone", "base", "style", "legal")):
        shutil.copy(SAMPLE / "encodings" / f"{name}.encodings", folder / f"{number}.json")
    draft = convert_folder(folder, check=False)
    assert draft.config is not None
    given = {u.name: u.encodings and u.encodings.name for u in draft.config.use_cases}
    assert given == {
        "both": "0.json",
        "tone": "1.json",
        "base": "2.json",
        "style": "3.json",
        "legal": "4.json",
    }


def test_two_files_of_one_use_case_are_reported_with_both_names(tmp_path: Path) -> None:
    folder = copied(tmp_path / "folder", EXPORTED)
    tone = folder / "encodings" / "tone.encodings"
    shutil.copy(tone, folder / "first.encodings")
    tone.rename(folder / "second.encodings")
    draft = convert_folder(folder, check=False)
    assert messages(draft, "convert/ambiguous") == [
        "several encodings fit use case 'tone', and none was taken: 'first.encodings', "
        "'second.encodings'"
    ]
    assert draft.config is not None
    assert {u.name: u.encodings for u in draft.config.use_cases}["tone"] is None


def test_lists_that_fit_two_use_cases_alike_go_by_their_names_or_nowhere(tmp_path: Path) -> None:
    folder = copied(tmp_path / "folder", EXPORTED)
    lists = folder / "quant_updatable"
    (lists / "legal.txt").rename(lists / "one.txt")
    draft = convert_folder(folder, check=False)
    assert messages(draft, "convert/ambiguous") == [
        "the lists of tensors fit several use cases, and their name tells none: 'legal', 'both'"
    ]
    assert draft.config is not None
    given = {u.name: u.quant_updatable_tensors for u in draft.config.use_cases}
    assert given["both"] == lists / "both.txt"
    assert given["legal"] is None


def test_peft_folders_give_a_use_case_each_and_the_mixes_that_encodings_tell(
    tmp_path: Path,
) -> None:
    folder = copied(tmp_path / "folder", [*PEFT, "attach_points.json"])
    draft = convert_folder(folder)
    assert draft.ok
    assert draft.config is not None
    assert {u.name: u.adapter_names for u in draft.config.use_cases} == {
        "base": [],
        "tone": ["tone"],
        "legal": ["legal"],
        "style": ["style"],
        "both": ["tone", "legal"],  # the grids of A tell the order
    }
    for use_case in draft.config.use_cases:
        assert use_case.model == folder / "model" / "model.onnx"
        assert use_case.encodings == folder / "encodings" / f"{use_case.name}.encodings"
    assert rules(draft) == ["convert/strength-assumed"]


def test_a_configuration_in_the_folder_is_believed_where_content_leaves_it_open(
    tmp_path: Path,
) -> None:
    folder = copied(tmp_path / "folder", [*PEFT, "attach_points.json"])
    shutil.copy(CONFIG, folder / "lora_config.yaml")
    assert made(folder) == facts(read_lora_config(CONFIG), SAMPLE)


@pytest.mark.parametrize("spelling", ["use_case", "use-case"])
@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_older_spellings_are_read(tmp_path: Path, spelling: str, suffix: str) -> None:
    folder = copied(tmp_path / "folder", [*PEFT, "attach_points.json"])
    document = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    document[spelling] = [
        {("encodings" if key == "quant_overrides" else key): value for key, value in one.items()}
        for one in document.pop("use-case")
    ]
    text = json.dumps(document) if suffix == ".json" else yaml.safe_dump(document)
    (folder / f"old{suffix}").write_text(text, encoding="utf-8")
    assert made(folder) == facts(read_lora_config(CONFIG), SAMPLE)


def test_a_description_and_a_checkpoint_of_one_adapter_go_together(tmp_path: Path) -> None:
    folder = copied(tmp_path / "folder", ["model", "adapters", "adapter_params"])
    adapters = made(folder)["adapters"]
    assert adapters == {
        "tone": {"adapter_params/tone.json", "adapters/tone"},
        "legal": {"adapter_params/legal.json", "adapters/legal"},
        "style": {"adapters/style"},  # its three descriptions say less than it does
    }


def test_a_description_that_contradicts_its_checkpoint_is_left_out(tmp_path: Path) -> None:
    folder = copied(tmp_path / "folder", ["model", "adapters", "adapter_params"])
    edit_json(folder / "adapter_params" / "tone.json", lambda d: d.update(rank=5))
    draft = convert_folder(folder, check=False)
    assert any(
        "rank is declared as 5, expected 4" in text
        for text in messages(draft, "convert/unused-file")
    )


def test_adapters_that_no_file_describes_are_read_from_their_graphs(tmp_path: Path) -> None:
    folder = copied(tmp_path / "folder", ["model", "use_case_graphs"])
    (folder / "use_case_graphs" / "legal.onnx").unlink()
    (folder / "use_case_graphs" / "style.onnx").unlink()
    draft = convert_folder(folder)
    assert draft.ok
    assert draft.config is not None
    assert [u.name for u in draft.config.use_cases] == ["base", "tone"]
    assert rules(draft) == ["convert/description-assumed", "convert/no-mix"]
    (tone,) = draft.config.adapter
    (params,) = tone.adapter_lora_config
    assert (params.rank, params.alpha) == (4, 8)  # type: ignore[union-attr]


def test_two_bases_stop_with_both_names_until_one_is_given(tmp_path: Path) -> None:
    folder = copied(tmp_path / "folder", ["model", "adapters"])
    other = folder / "other"
    shutil.copytree(folder / "model", other)
    draft = convert_folder(folder)
    assert draft.config is None
    assert messages(draft, "convert/several-bases") == [
        "2 graphs without branches could be the base: 'model/model.onnx', 'other/model.onnx'"
    ]
    draft = convert_folder(folder, base=other / "model.onnx")
    assert draft.ok
    assert draft.config is not None
    assert draft.config.use_cases[0].model == other / "model.onnx"


def test_a_given_base_with_branches_is_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path / "folder", ["model", "use_case_graphs"])
    with pytest.raises(ConfigError, match="the base graph has branches at 4 modules"):
        convert_folder(folder, base=folder / "use_case_graphs" / "tone.onnx")


def test_a_missing_base_is_named_beside_what_is_there(tmp_path: Path) -> None:
    folder = copied(tmp_path / "folder", ["use_case_graphs", "adapter_params"])
    draft = convert_folder(folder)
    assert draft.config is None
    (text,) = messages(draft, "convert/no-base")
    assert text.startswith("no graph is without branches, the base is missing: there are 'use_case")


def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    draft = convert_folder(tmp_path)
    assert draft.config is None
    assert rules(draft) == ["convert/no-base", "convert/nothing"]


def test_a_folder_without_adapters_makes_no_file(tmp_path: Path) -> None:
    draft = convert_folder(copied(tmp_path / "folder", ["model", "encodings"]))
    assert draft.config is None
    assert rules(draft) == ["convert/no-adapters"]


def test_a_use_case_that_no_mix_explains_is_left_out_with_its_ranks(tmp_path: Path) -> None:
    folder = copied(tmp_path / "folder", EXPORTED)
    (folder / "adapter_params" / "legal.json").unlink()
    draft = convert_folder(folder)
    assert draft.ok  # tone and style are left
    assert draft.config is not None
    assert [u.name for u in draft.config.use_cases] == ["base", "style", "tone"]
    texts = messages(draft, "convert/no-mix")
    assert len(texts) == 2
    assert texts[0].startswith(
        "use case 'legal' was left out: no mix of 'style', 'tone' has its ranks and scales; its "
        "graph has branches at 14 modules ('model.layers.0.self_attn.q_proj', "
    ) or texts[1].startswith("use case 'legal'")


def test_files_that_cannot_be_read_are_named_and_skipped(tmp_path: Path) -> None:
    folder = copied(tmp_path / "folder", ["model", "adapters"])
    (folder / "broken.onnx").write_bytes(b"no graph")
    (folder / "broken.json").write_text("{", encoding="utf-8")
    (folder / "broken.safetensors").write_bytes(b"\x00" * 100)
    draft = convert_folder(folder)
    assert draft.ok
    named = {f.where.file for f in draft.findings if f.rule == "convert/unreadable"}
    assert named == {folder / f"broken{s}" for s in (".onnx", ".json", ".safetensors")}


def test_links_are_not_followed_in_circles(tmp_path: Path) -> None:
    folder = copied(tmp_path / "folder", ["model", "adapters"])
    try:
        (folder / "adapters" / "again").symlink_to(folder, target_is_directory=True)
    except OSError:
        pytest.skip("no symbolic links here")
    draft = convert_folder(folder)
    assert draft.ok
    assert messages(draft, "convert/link") == [
        "links to folders are not followed: 'adapters/again'"
    ]


def test_names_with_spaces_and_other_letters_are_kept(tmp_path: Path) -> None:
    folder = copied(tmp_path / "eine Mappe", ["model", "adapters"])
    (folder / "adapters" / "tone").rename(folder / "adapters" / "höflicher Ton")
    use_cases = made(folder, check=True)["use cases"]
    assert isinstance(use_cases, dict)
    assert use_cases["höflicher Ton"][0] == ("höflicher Ton",)


def test_a_pack_in_the_folder_is_passed_over(tmp_path: Path) -> None:
    folder = copied(tmp_path / "folder", ["model", "adapters"])
    (folder / "pack").mkdir()
    (folder / "pack" / "pack.json").write_text("{}", encoding="utf-8")
    shutil.copy(folder / "model" / "model.data", folder / "pack" / "lora.safetensors")
    draft = convert_folder(folder)
    assert draft.ok
    assert rules(draft) == ["convert/pack"]


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="the folder cannot be read"):
        convert_folder(tmp_path / "nowhere")


def test_what_a_build_would_refuse_is_an_error_beside_the_configuration(tmp_path: Path) -> None:
    folder = copied(tmp_path / "folder", ["model", "adapters"])
    for adapter in ("legal", "style"):
        shutil.rmtree(folder / "adapters" / adapter)
    (folder / "adapters" / "tone").rename(folder / "adapters" / "two")
    shutil.copytree(ROOT / "fixtures" / "exports" / "adapter", folder / "adapters" / "foreign")
    draft = convert_folder(folder)
    assert draft.config is not None
    assert not draft.ok
    (error,) = (f for f in draft.findings if f.severity is Severity.ERROR)
    assert error.rule.startswith("error/LQ")


def test_names_of_a_network_by_aimet_are_paired_in_their_newest_version(tmp_path: Path) -> None:
    folder = tmp_path / "network"
    shutil.copytree(ROOT / "fixtures" / "aimet" / "network", folder)
    (folder / "base_lora_zero.fp32.onnx").unlink()
    for name in ("adapter_a", "adapter_b"):
        params = {"name": name, "rank": 8, "alpha": 8, "target_modules": ["q", "v"]}
        (folder / f"{name}.json").write_text(json.dumps(params), encoding="utf-8")
    draft = convert_folder(folder)
    assert draft.ok
    # each use case was calibrated as a whole, and its bias has the grid of its own input
    assert draft.options == "--mode all --fixed-conflict base"
    assert draft.config is not None
    given = {
        u.name: (u.adapter_names, u.encodings and u.encodings.name) for u in draft.config.use_cases
    }
    assert given == {
        "base": ([], "base_plain.v2.0.0.encodings"),
        "lora_adapter_a": (["adapter_a"], "lora_adapter_a.v2.0.0.encodings"),
        "lora_adapter_b": (["adapter_b"], "lora_adapter_b.v2.0.0.encodings"),
    }


def test_weights_that_were_made_for_an_engine_are_no_adapter(tmp_path: Path) -> None:
    folder = copied(tmp_path / "folder", ["model", "adapters"])
    weights = load_file(SAMPLE / "adapters" / "tone" / "adapter_model.safetensors")
    save_file(weights, folder / "adapter_weights.safetensors")
    np.savez(folder / "adapter_weights.npz", *weights.values())
    draft = convert_folder(folder)
    assert draft.ok
    assert messages(draft, "convert/no-adapter") == [
        "the weights cannot be read as an adapter: they were made for ONNX Runtime, transposed and "
        "with the scale inside",
        "the weights cannot be read as an adapter: they have no configuration beside them, and "
        "nothing else tells their scale",
    ]


def test_a_graph_counts_more_than_a_configuration(tmp_path: Path) -> None:
    folder = copied(tmp_path / "folder", [*EXPORTED, "lora_config_exported.yaml"])
    config = folder / "lora_config_exported.yaml"

    def half(document: Document) -> None:
        document["use-case"][-1]["adapter_alphas"] = [1.0, 0.5]

    edit_yaml(config, half)
    draft = convert_folder(folder)
    assert draft.ok
    assert messages(draft, "convert/statement-contradicted") == [
        "a configuration says that use case 'both' is 1 tone + 0.5 legal, and its graph holds "
        "1 tone + 0.6 legal: the graph counts"
    ]


def test_a_wrong_alpha_is_told_from_a_strength(tmp_path: Path) -> None:
    """Nothing in the folder tells the two apart: it is decided, and said."""
    folder = copied(tmp_path / "folder", EXPORTED)
    edit_json(folder / "adapter_params" / "tone.json", lambda d: d.update(alpha=16))
    draft = convert_folder(folder)
    assert messages(draft, "convert/unusual-strength") == [
        "the graph of use case 'tone' holds 0.5 times the scale that alpha and rank of adapter "
        "'tone' give: it was taken as its strength"
    ]
    shutil.copy(SAMPLE / "lora_config_exported.yaml", folder)
    config = folder / "lora_config_exported.yaml"

    def half(document: Document) -> None:
        document["use-case"][1]["adapter_alphas"] = [0.5]

    edit_yaml(config, half)
    assert messages(convert_folder(folder), "convert/unusual-strength") == []
