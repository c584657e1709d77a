"""Files that bring less, more or something else than the branches of a use case need."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_quant.api import build
from lora_quant.config.lora_config import LoraConfig
from lora_quant.config.options import BuildOptions, EncodingsVersion, Mode
from lora_quant.errors import EncodingsError
from lora_quant.findings import Finding
from tests.passes.test_expected_encodings import (
    BASE,
    branch_names,
    given,
    overrides,
    without_name,
)
from tests.sample import TONE, Document, copy_sample, edit_json, edit_yaml, entries, keep_use_cases

MODULE = "model.layers.0.self_attn.q_proj"
NAMES = branch_names(MODULE)
SECTIONS = ("activation_encodings", "param_encodings")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The sample with the use cases `base` and `tone` alone."""
    return keep_use_cases(copy_sample(tmp_path), ["base", "tone"])


def tone_file(config: Path) -> Path:
    return config.parent / "encodings" / "tone.encodings"


def keep(path: Path, condition: Any) -> None:
    """Keep the entries of an encodings file that fulfil a condition."""

    def cut(document: Document) -> None:
        for section in SECTIONS:
            document[section] = [e for e in document[section] if condition(e)]

    edit_json(path, cut)


def edit_entry(path: Path, name: str, **fields: Any) -> None:
    def change(document: Document) -> None:
        for section in SECTIONS:
            for entry in document[section]:
                if entry["name"] == name:
                    entry.update(fields)

    edit_json(path, change)


def build_tone(config: Path, **options: Any) -> tuple[dict[str, Document], list[Finding]]:
    result = build(config, config.parent / "out", BuildOptions(**options))
    return overrides(result.output, "tone"), list(result.findings)


def rules(findings: list[Finding]) -> set[str]:
    return {f.rule for f in findings}


def test_a_fragment_is_laid_over_the_base(config: Path) -> None:
    """What AIMET's deployment export writes: branch tensors alone, no version, no sections."""
    names = {branch_names(m)[role][0] for m in TONE for role in ("A", "B", "a", "m", "l")}
    fragment = {n: without_name(e) for n, e in given("tone").items() if n in names}
    whole, _ = build_tone(config)
    tone_file(config).write_text(json.dumps(fragment), encoding="utf-8")
    found, findings = build_tone(config, force=True)
    assert found == whole
    assert findings == []


def test_a_missing_activation_is_named(config: Path) -> None:
    for role in ("a", "l"):
        keep(tone_file(config), lambda e, role=role: e["name"] != NAMES[role][0])
    found, findings = build_tone(config)
    missing = [f for f in findings if f.rule == "encodings/missing-activation"]
    assert [(f.message, f.where.tensor) for f in missing] == [
        ("no encoding for the activation a = A x", NAMES["a"][1]),
        ("no encoding for the activation l = B m", NAMES["l"][1]),
    ]
    assert {f.where.use_case for f in missing} == {"tone"}
    assert NAMES["a"][1] not in found
    assert NAMES["m"][1] in found
    listed = config.parent / "out" / "qairt" / "tone" / "quant_updatable_tensors.txt"
    assert NAMES["a"][1] not in listed.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("strength", "low_factor", "high_factor"), [(1.5, 3.0, 3.0), (-0.5, -1.0, -1.0)]
)
def test_a_missing_m_is_computed_from_a(
    strength: float, low_factor: float, high_factor: float, config: Path
) -> None:
    """m = strength * 2 * a (2 is tone's scale); a negative strength turns the range around."""
    keep(tone_file(config), lambda e: e["name"] != NAMES["m"][0])

    def change(document: Document) -> None:
        document["use-case"][1]["adapter_alphas"] = [strength]

    found, findings = build_tone(edit_yaml(config, change))
    assert "encodings/computed-activation" in rules(findings)
    a, m = found[NAMES["a"][1]], found[NAMES["m"][1]]
    (a_scale,), (a_offset,) = a["scale"], a["offset"]
    (m_scale,), (m_offset,) = m["scale"], m["offset"]
    wanted = sorted((a_offset * a_scale * low_factor, (a_offset + 65535) * a_scale * high_factor))
    # A grid whose offset is rounded misses an end of the range by at most half a step.
    assert m_offset * m_scale == pytest.approx(wanted[0], abs=m_scale * 0.51)
    assert (m_offset + 65535) * m_scale == pytest.approx(wanted[1], abs=m_scale * 0.51)
    assert (m["bw"], m["is_sym"]) == (a["bw"], a["is_sym"])


@pytest.mark.parametrize("bits", [8, 4])
def test_missing_weights_are_computed_from_their_values(bits: int, config: Path) -> None:
    """Symmetric, per channel: max(-min / 2**(bits-1), max / (2**(bits-1) - 1)) in float32."""
    for role in ("A", "B"):
        for module in TONE:
            name = branch_names(module)[role][0]
            keep(tone_file(config), lambda e, name=name: e["name"] != name)
    found, findings = build_tone(config, weight_bits=bits)
    assert findings == []
    weights = load_file(config.parent / "out" / "qairt" / "tone" / "lora_weights.safetensors")
    half = 2 ** (bits - 1)
    for role in ("A", "B"):
        name = NAMES[role][1]
        values = weights[name].astype(np.float64)  # [in, R] and [R, out]: channels in axis 1
        expected = np.maximum(-values.min(axis=0) / half, values.max(axis=0) / (half - 1))
        expected = expected.astype(np.float32).astype(np.float64)
        assert found[name]["enc_type"] == "PER_CHANNEL"
        assert (found[name]["bw"], found[name]["is_sym"]) == (bits, True)
        assert found[name]["scale"] == expected.tolist()
        assert set(found[name]["offset"]) == {-half}


def test_a_use_case_without_encodings_in_a_quantized_build(config: Path) -> None:
    """`quant_overrides: null`: weights are computed, every activation is reported by name."""

    def strip(document: Document) -> None:
        document["use-case"][1]["quant_overrides"] = None
        document["use-case"][1].pop("quant_updatable_tensors")

    found, findings = build_tone(edit_yaml(config, strip))
    missing = {f.where.tensor for f in findings if f.rule == "encodings/missing-activation"}
    assert missing == {branch_names(m)[role][1] for m in TONE for role in ("a", "m", "l")}
    assert {branch_names(m)[role][1] for m in TONE for role in ("A", "B")} <= set(found)
    assert {name: found[name] for name in BASE} == BASE


def test_a_base_without_encodings_is_represented_by_a_use_case(config: Path) -> None:
    def strip(document: Document) -> None:
        document["use-case"][0].pop("quant_overrides")

    found, findings = build_tone(edit_yaml(config, strip))
    assert rules(findings) == {"encodings/no-base"}
    assert "those of 'tone' stand for the base" in findings[0].message
    assert found["logits"] == BASE["logits"]


def test_encodings_of_no_tensor_are_named(config: Path) -> None:
    def add(document: Document) -> None:
        first = document["activation_encodings"][0]
        document["activation_encodings"].append({**first, "name": "/elsewhere/MatMul_output_0"})

    edit_json(tone_file(config), add)
    _, findings = build_tone(config)
    assert rules(findings) == {"encodings/unknown-tensor"}
    assert "'/elsewhere/MatMul_output_0'" in findings[0].message
    assert findings[0].where.use_case == "tone"


def test_a_weight_that_its_grid_clips_is_named(config: Path) -> None:
    name = NAMES["A"][0]
    scales = given("tone")[name]["scale"]
    edit_entry(tone_file(config), name, scale=[s / 2 for s in scales])
    _, findings = build_tone(config)
    (finding,) = findings
    assert finding.rule == "encodings/weight-clips"
    assert finding.where.tensor == NAMES["A"][1]
    assert (
        "the given encoding ends before the values do: in channel 0, values reach"
        in finding.message
    )


def test_a_strength_outside_of_the_alpha_input_s_range_is_named(config: Path) -> None:
    def add(document: Document) -> None:
        grid = {"bw": 16, "dtype": "INT", "enc_type": "PER_TENSOR", "is_sym": False}
        entry = {**grid, "name": "lora_alpha", "offset": [0], "scale": [0.5 / 65535]}
        document["activation_encodings"].append(entry)

    edit_json(config.parent / "encodings" / "base.encodings", add)
    found, findings = build_tone(config)
    assert rules(findings) == {"encodings/alpha-clips"}
    assert findings[0].message == (
        "strength 1 of adapter 'tone' is outside the range [0, 0.5] of the alpha input and would "
        "clip"
    )
    assert found["lora_alpha"]["scale"] == [0.5 / 65535]


@pytest.mark.parametrize(
    ("role", "count", "text"),
    [
        ("A", 3, "lora_A has 3 scales per channel; the adapters of use case 'tone' have 4 ranks"),
        ("A", 9, "lora_A has 9 scales per channel; the adapters of use case 'tone' have 4 ranks"),
        ("B", 63, "lora_B has 63 scales per channel, the module has 64 output features"),
    ],
)
def test_a_wrong_number_of_scales_is_refused(
    role: str, count: int, text: str, config: Path
) -> None:
    edit_entry(tone_file(config), NAMES[role][0], scale=[0.01] * count, offset=[-128] * count)
    with pytest.raises(EncodingsError) as caught:
        build_tone(config)
    assert text in str(caught.value)
    assert caught.value.where.tensor == NAMES[role][1]
    assert caught.value.where.file == tone_file(config)


def test_lora_a_padded_at_the_tail_is_taken(tmp_path: Path) -> None:
    """tone (rank 4) in a graph of R = 12 whose file pads A to the same 12."""
    config = keep_use_cases(copy_sample(tmp_path), ["base", "tone", "both"])
    scales = given("tone")[NAMES["A"][0]]["scale"]
    edit_entry(tone_file(config), NAMES["A"][0], scale=[*scales, *[1e-5] * 8], offset=[-128] * 12)
    found, findings = build_tone(config)
    assert found[NAMES["A"][1]]["scale"] == [*scales, *[1e-5] * 8]
    assert findings == []


def test_lora_a_padded_to_another_rank_is_refused(tmp_path: Path) -> None:
    """8 scales for an adapter of rank 4 are those of another adapter sooner than padding."""
    config = keep_use_cases(copy_sample(tmp_path), ["base", "tone", "both"])
    scales = given("tone")[NAMES["A"][0]]["scale"]
    edit_entry(tone_file(config), NAMES["A"][0], scale=[*scales, *scales], offset=[-128] * 8)
    with pytest.raises(EncodingsError, match="lora_A has 8 scales per channel") as e:
        build_tone(config)
    assert "have 4 ranks here" in e.value.message
    assert e.value.where.use_case == "tone"


def test_encodings_of_another_use_case_are_noticed(tmp_path: Path) -> None:
    config = keep_use_cases(copy_sample(tmp_path), ["base", "tone", "style"])
    edit_yaml(
        config,
        lambda d: d["use-case"][1].update(
            quant_overrides="encodings/style.encodings", quant_updatable_tensors=None
        ),
    )
    findings = build(config, tmp_path / "out").findings
    idle = [f for f in findings if f.rule == "encodings/idle-branch"]
    assert [f.where.use_case for f in idle] == ["tone"]
    assert "are for branches that the adapters of the use case leave idle" in idle[0].message
    assert "may belong to another use case" in str(idle[0].hint)


def lpbq(scale: float) -> Document:
    """A [64, 4] in blocks of 32 inputs: 4 channels of two blocks."""
    return {
        "enc_type": "LPBQ",
        "bw": 8,
        "compressed_bw": 4,
        "block_size": 32,
        "scale": [scale] * 4,
        "offset": [-128] * 4,
        "per_block_int_scale": [16, 8] * 4,
    }


@pytest.mark.parametrize("mode", ["adapter_only", "none"])
def test_lpbq_grids_of_two_use_cases(tmp_path: Path, mode: Mode) -> None:
    """They have no union: each use case keeps its own where it may, else the build stops."""
    config = keep_use_cases(copy_sample(tmp_path), ["base", "tone", "legal"])
    adapters = config.parent / "adapters"
    shutil.rmtree(adapters / "legal")
    shutil.copytree(adapters / "tone", adapters / "legal")
    files = [config.parent / "encodings" / f"{name}.encodings" for name in ("tone", "legal")]
    shutil.copy(files[0], files[1])
    for file, scale in zip(files, (0.01, 0.02), strict=True):
        edit_entry(file, NAMES["A"][0], **lpbq(scale))
    edit_yaml(config, lambda d: [u.pop("quant_updatable_tensors", None) for u in d["use-case"]])
    options = BuildOptions(mode=mode)
    if mode == "none":
        with pytest.raises(EncodingsError, match="different LPBQ grids have no union") as e:
            build(config, tmp_path / "out", options)
        assert e.value.where.tensor == NAMES["A"][1]
        return
    findings = build(config, tmp_path / "out", options).findings
    assert [f.where.tensor for f in findings if f.rule == "encodings/no-union"] == [NAMES["A"][1]]
    for use_case, scale in (("tone", 0.01), ("legal", 0.02)):
        found = entries(tmp_path / "out" / "qairt" / use_case / "quant_overrides.json")
        assert found[NAMES["A"][1]]["scale"][:4] == [scale] * 4
        assert found[NAMES["A"][1]]["per_block_int_scale"][:8] == [16, 8] * 4


def test_scales_of_a_fused_projection_go_to_their_modules(tmp_path: Path) -> None:
    """The file's A of a packed qkv has the ranks of q, k and v in the order of the rows."""
    exports = Path(__file__).parents[1] / "fixtures" / "exports"
    scales = [0.1] * 4 + [0.2] * 4 + [0.3] * 4
    entry = {"bw": 8, "dtype": "INT", "enc_type": "PER_CHANNEL", "is_sym": True}
    name = "model.layers.0.attn.qkv_proj.lora_A.weight"
    document = {
        "version": "1.0.0",
        "activation_encodings": [],
        "param_encodings": [{**entry, "name": name, "scale": scales, "offset": [-128] * 12}],
    }
    file = tmp_path / "on.encodings"
    file.write_text(json.dumps(document), encoding="utf-8")
    use_case = {"model_name": exports / "genai_fp32" / "model.onnx", "quant_overrides": file}
    config = LoraConfig.model_validate(
        {
            "adapter": [{"name": "a", "lora_config": exports / "adapter"}],
            "use-case": [
                {"name": "on", "adapter_names": ["a"], "adapter_alphas": [1.0], **use_case}
            ],
        }
    )
    manifest = build(config, tmp_path / "out").manifest
    point = next(
        p for p in manifest.attach_points if p.tensors is not None and p.tensors.a_weight == name
    )
    assert [part.module.rpartition(".")[2] for part in point.modules] == [
        "q_proj",
        "k_proj",
        "v_proj",
    ]
    found = entries(tmp_path / "out" / "qairt" / "on" / "quant_overrides.json")
    assert found[name]["scale"] == scales


def test_per_tensor_weights_stay_per_tensor(config: Path) -> None:
    """What holds for one grid of A holds for all ranks: there is nothing to move."""
    for role, scale in (("A", 0.02), ("B", 0.01)):
        for module in TONE:
            name = branch_names(module)[role][0]
            fields = {"enc_type": "PER_TENSOR", "scale": [scale], "offset": [-128]}
            edit_entry(tone_file(config), name, **fields)
    found, _ = build_tone(config)
    assert found[NAMES["A"][1]]["scale"] == [0.02]
    assert found[NAMES["A"][1]]["enc_type"] == "PER_TENSOR"
    assert found[NAMES["B"][1]]["scale"] == [0.01]


def test_a_rank_of_1_is_per_channel_in_0_6_1(tmp_path: Path) -> None:
    """0.6.1 cannot tell one channel from per tensor; its header says what was meant."""
    config = keep_use_cases(copy_sample(tmp_path), ["base", "tone", "legal"])
    folder = config.parent / "adapters" / "tone"
    tensors = load_file(folder / "adapter_model.safetensors")
    cut = {
        n: np.ascontiguousarray(v[:1] if "lora_A" in n else v[:, :1]) for n, v in tensors.items()
    }
    save_file(cut, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    edit_json(folder / "adapter_config.json", lambda d: d.update(r=1, lora_alpha=2))
    source = given("tone")
    old: Document = {
        "version": "0.6.1",
        "quantizer_args": {"per_channel_quantization": True},
        **{section: {} for section in SECTIONS},
    }
    for name, entry in source.items():
        section = SECTIONS[name.endswith(".weight") and entry["enc_type"] == "PER_CHANNEL"]
        size = 1 if "lora_A.weight" in name else len(entry["scale"])
        old[section][name] = [
            {
                "bitwidth": entry["bw"],
                "dtype": "int",
                "is_symmetric": str(entry["is_sym"]),
                "scale": scale,
                "offset": entry["offset"][0],
                "min": entry["offset"][0] * scale,
                "max": (entry["offset"][0] + 2 ** entry["bw"] - 1) * scale,
            }
            for scale in entry["scale"][:size]
        ]
    tone_file(config).write_text(json.dumps(old), encoding="utf-8")
    found, _ = build_tone(config)
    scale = source[NAMES["A"][0]]["scale"][0]
    assert found[NAMES["A"][1]]["enc_type"] == "PER_CHANNEL"
    assert found[NAMES["A"][1]]["scale"] == [scale] * 8


def test_a_module_that_is_switched_off(config: Path) -> None:
    """alpha_pattern of 0: B is zero, and m is still s * a since s is shared."""
    edit_json(
        config.parent / "adapters" / "tone" / "adapter_config.json",
        lambda d: d.update(alpha_pattern={"layers.0.self_attn.q_proj": 0}),
    )
    found, findings = build_tone(config)
    weights = load_file(config.parent / "out" / "qairt" / "tone" / "lora_weights.safetensors")
    assert not weights[NAMES["B"][1]].any()
    assert {f.where.tensor for f in findings if f.rule == "encodings/computed-weight"} == {
        NAMES["B"][1]
    }
    a, m = found[NAMES["a"][1]], found[NAMES["m"][1]]
    assert m["scale"] == [a["scale"][0] * 2.0]
    assert entries(tone_file(config)) == given("tone")


def test_an_alpha_range_of_a_use_case_is_not_dropped_silently(config: Path) -> None:
    """The alpha input is fixed: a grid of its own in one use case is named, the same one is not."""
    same = 1 / 65535

    def give(scale: float) -> None:
        entry = {"name": "lora_alpha", "enc_type": "PER_TENSOR", "dtype": "INT", "bw": 16}
        grid = {"is_sym": False, "scale": [scale], "offset": [0]}
        edit_json(tone_file(config), lambda d: d["activation_encodings"].append({**entry, **grid}))

    give(same)
    _, findings = build_tone(config)
    assert findings == []
    edit_json(tone_file(config), lambda d: d["activation_encodings"].pop())
    give(4 * same)
    _, findings = build_tone(config, force=True)
    assert [f.rule for f in findings] == ["encodings/alpha-differs"]
    assert "goes from 0 to 4; the input is fixed, and 0 to 1 was kept" in findings[0].message


def test_blocks_that_do_not_fit_the_inputs_are_refused(config: Path) -> None:
    """A block of 128 of 64 inputs."""
    fields = {"enc_type": "PER_BLOCK", "block_size": 128, "scale": [0.1] * 4, "offset": [-128] * 4}
    edit_entry(tone_file(config), NAMES["A"][0], **fields)
    with pytest.raises(
        EncodingsError, match="lora_A has 4 blocks of 128; expected a multiple"
    ) as e:
        build_tone(config)
    assert e.value.where.tensor == NAMES["A"][1]


@pytest.mark.parametrize("version", ["0.6.1", "1.0.0", "2.0.0"])
def test_a_pack_can_be_built_from_its_own_encodings_where_a_module_has_one_rank(
    version: EncodingsVersion, config: Path
) -> None:
    """They have a scale for every padded rank; those of the adapter's own graph would have one."""
    adapter = config.parent / "adapters" / "tone"
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name in [name for name in tensors if f"{MODULE}.lora_" in name]:
        one = tensors[name][:1] if ".lora_A." in name else tensors[name][:, :1]
        tensors[name] = np.ascontiguousarray(one)
    save_file(tensors, adapter / "adapter_model.safetensors")
    edit_json(adapter / "adapter_config.json", lambda d: d.update(rank_pattern={MODULE: 1}))
    own = {name for role in NAMES.values() for name in role}
    keep(tone_file(config), lambda entry: entry["name"] not in own)
    options = BuildOptions(encodings_version=version, force=True)
    written = config.parent / "out" / "qairt" / "tone" / "quant_overrides.json"
    build(config, config.parent / "out", options)
    made = written.read_bytes()
    tone_file(config).write_bytes(made)
    findings = build(config, config.parent / "out", options).findings
    assert written.read_bytes() == made
    assert "encodings/unknown-tensor" not in rules(list(findings))
