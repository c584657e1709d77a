"""Files that AIMET wrote: they come back unchanged, and one version converts to AIMET's other."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file

from lora_quant.encodings import aimet_0_6_1, aimet_1_0_0, aimet_2_0_0, fragment
from lora_quant.encodings.convert import TensorFacts, convert, resolve
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.encodings.files import encodings_text, parse_encodings, read_encodings
from lora_quant.encodings.quantize import dequantize, quantize
from lora_quant.errors import EncodingsError

AIMET = Path(__file__).parents[1] / "fixtures" / "aimet"
FILES = sorted(AIMET.glob("*/*.encodings"))
DIALECTS = {"0.6.1": aimet_0_6_1, "1.0.0": aimet_1_0_0, "2.0.0": aimet_2_0_0, None: fragment}
NETWORKS = ("base_plain", "base_lora_zero", "lora_adapter_a", "lora_adapter_b")


def facts_of(model: Path) -> dict[str, TensorFacts]:
    """Channel and block axis of each weight and bias by the operator that reads it."""
    graph = onnx.load(str(model)).graph
    shapes = {i.name: tuple(i.dims) for i in graph.initializer}
    facts = {}
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv") or node.input[1] not in shapes:
            continue
        transposed = any(a.name == "transB" and a.i == 1 for a in node.attribute)
        axis = 0 if node.op_type == "Conv" or transposed else 1
        facts[node.input[1]] = TensorFacts(shapes[node.input[1]], axis, 1 - axis)
        if len(node.input) > 2 and node.input[2] in shapes:
            facts[node.input[2]] = TensorFacts(shapes[node.input[2]], 0)
    for node in graph.node:
        if node.op_type == "Add":
            for name in node.input:
                if name in shapes and len(shapes[name]) == 1:
                    facts[name] = TensorFacts(shapes[name], 0)
    return facts


def assert_same_grids(got: EncodingFile, expected: EncodingFile) -> None:
    assert set(got.encodings) == set(expected.encodings)
    for name, encoding in expected.encodings.items():
        assert got.encodings[name].same_grid(encoding), name


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_a_file_comes_back_unchanged_down_to_the_spelling_of_its_numbers(path: Path) -> None:
    file = read_encodings(path)
    assert file.findings == ()
    original = json.loads(path.read_text(encoding="utf-8"))
    written = DIALECTS[file.version].write(file)
    assert json.dumps(written, sort_keys=True) == json.dumps(original, sort_keys=True)
    again = parse_encodings("".join(encodings_text(file)))
    assert again.same_content(file)


def test_there_are_files_of_every_dialect() -> None:
    assert {read_encodings(path).version for path in FILES} == set(DIALECTS)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_version_of_a_network_converts_to_the_others(network: str) -> None:
    files = {
        v: read_encodings(AIMET / "network" / f"{network}.v{v}.encodings")
        for v in ("0.6.1", "1.0.0", "2.0.0")
    }
    facts = facts_of(AIMET / "network" / f"{network}.fp32.onnx")
    biases = {n for n, e in files["2.0.0"].encodings.items() if e.bits == 32}
    assert biases == {"fc.bias"}
    for source in files.values():
        for version, expected in files.items():
            got = convert(source, version, facts, int32_bias=False)
            assert_same_grids(got, expected.without(biases))
            assert got.params == expected.params
            dropped = biases if source.version == "2.0.0" else set()
            assert {f.where.tensor for f in got.findings} == dropped
            if version != "2.0.0":
                assert set(got.encodings) == set(files["1.0.0"].encodings)


@pytest.mark.parametrize("network", NETWORKS)
def test_0_6_1_and_1_0_0_convert_without_the_graph(network: str) -> None:
    old = read_encodings(AIMET / "network" / f"{network}.v0.6.1.encodings")
    new = read_encodings(AIMET / "network" / f"{network}.v1.0.0.encodings")
    for source, target in ((old, new), (new, old)):
        assert target.version is not None
        got = convert(source, target.version)
        assert_same_grids(got, target)
        assert (got.params, got.header) == (target.params, target.header)


@pytest.mark.parametrize("kind", ["per_tensor", "per_channel", "per_block", "lpbq"])
def test_every_kind_converts_between_1_0_0_and_2_0_0(kind: str) -> None:
    new = read_encodings(AIMET / "kinds" / f"{kind}.v1.0.0.encodings")
    newest = read_encodings(AIMET / "kinds" / f"{kind}.v2.0.0.encodings")
    facts = facts_of(AIMET / "kinds" / "net.onnx")
    only_newest = set(newest.encodings) - set(new.encodings)
    assert only_newest == {"gemm.bias", "plain_gemm.bias", "point.bias", "i"}
    expected = json.loads(
        (AIMET / "kinds" / f"{kind}.v2.0.0.encodings").read_text(encoding="utf-8")
    )
    entries = {e["name"]: e for e in expected["encodings"] if e["name"] not in only_newest}
    written = aimet_2_0_0.write(convert(new, "2.0.0", facts))
    assert {e["name"]: e for e in written["encodings"]} == entries

    back = aimet_1_0_0.write(convert(newest.without(only_newest), "1.0.0", facts))
    original = json.loads(
        (AIMET / "kinds" / f"{kind}.v1.0.0.encodings").read_text(encoding="utf-8")
    )
    assert back["param_encodings"] == original["param_encodings"]
    assert {e["name"]: e for e in back["activation_encodings"]} == {
        e["name"]: e for e in original["activation_encodings"]
    }


@pytest.mark.parametrize("kind", ["per_tensor", "per_channel", "per_block", "lpbq"])
@pytest.mark.parametrize("version", ["1.0.0", "2.0.0"])
def test_weights_are_quantized_as_aimet_does(kind: str, version: str) -> None:
    """AIMET's weights come from a float32 product q * scale.

    Ours is in double with the same float32 scale, so they differ by one rounding, 2**-24 of the
    value; the scale of LPBQ is itself a float32 product of two, which adds another.
    """
    file = read_encodings(AIMET / "kinds" / f"{kind}.v{version}.encodings")
    expected = load_file(AIMET / "kinds" / f"{kind}.weights.safetensors")
    facts = facts_of(AIMET / "kinds" / "net.onnx")
    graph = onnx.load(str(AIMET / "kinds" / "net.onnx")).graph
    weights = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    for name, theirs in expected.items():
        encoding = resolve(file.encodings[name], facts[name])
        ours = dequantize(encoding, quantize(encoding, weights[name]))
        np.testing.assert_allclose(ours, theirs, rtol=2.0**-23, atol=0)


def test_blocks_in_0_6_1_read_as_channels_and_do_not_fit_the_weight() -> None:
    file = read_encodings(AIMET / "kinds" / "per_block.v0.6.1.encodings")
    facts = facts_of(AIMET / "kinds" / "net.onnx")
    with pytest.raises(
        EncodingsError, match=r"the encoding covers \d+ channels, the tensor of shape"
    ):
        convert(file, "1.0.0", facts)
