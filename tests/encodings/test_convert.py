import pytest

from lora_quant.encodings.convert import TensorFacts, convert, resolve
from lora_quant.encodings.encoding import Encoding, Granularity
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.errors import EncodingsError
from lora_quant.findings import Severity

INT8 = Encoding.per_channel([1.0, 2.0], bits=8, symmetric=True)
ACTIVATION = Encoding.per_tensor(1.0, -100, bits=16, symmetric=False)
BIAS = Encoding.per_channel([1.0, 2.0], bits=32, symmetric=True, axis=0)
FLAT = Encoding.per_block([1.0, 2.0, 3.0, 4.0], bits=4, symmetric=True, block_size=8)


def test_unsigned_and_signed_types_shift_the_zero_point() -> None:
    signed = Encoding.per_tensor(1.0, -130, bits=8, symmetric=True)
    assert float(signed.zero_point) == 2.0
    assert float(ACTIVATION.zero_point) == 100.0


def test_facts_may_be_a_function() -> None:
    file = EncodingFile("1.0.0", {"x": ACTIVATION, "w": INT8}, frozenset({"w"}))
    got = convert(file, "2.0.0", lambda name: TensorFacts((4, 2), 1) if name == "w" else None)
    assert got.encodings["w"].axis == 1
    assert got.params is None


def test_parameters_coming_from_2_0_0_are_what_has_facts() -> None:
    file = EncodingFile("2.0.0", {"x": ACTIVATION, "w": INT8}, header={"producer": {}})
    got = convert(file, "1.0.0", {"w": TensorFacts((2, 4), 0)})
    assert got.params == frozenset({"w"})
    assert got.header == {"producer": {}}


def test_tensors_in_float_have_no_entry_in_2_0_0() -> None:
    file = EncodingFile("1.0.0", {"x": Encoding.floating(16)}, frozenset())
    got = convert(file, "2.0.0")
    assert got.encodings == {}
    (finding,) = got.findings
    assert (finding.rule, finding.severity) == ("encodings/float-left-out", Severity.NOTE)
    assert finding.where.tensor == "x"


def test_32_bit_entries_are_kept_unless_told_otherwise() -> None:
    file = EncodingFile("2.0.0", {"b": BIAS})
    facts = {"b": TensorFacts((2,), 0)}
    assert convert(file, "0.6.1", facts).encodings["b"].same_grid(BIAS)
    got = convert(file, "1.0.0", facts, int32_bias=False)
    assert (got.encodings, got.params) == ({}, frozenset())
    assert [f.rule for f in got.findings] == ["encodings/int32-bias"]


def test_a_rank_1_weight_is_told_from_per_tensor_by_the_header() -> None:
    one = Encoding.per_channel([1.0], bits=8, symmetric=True)
    file = EncodingFile(
        "1.0.0",
        {"w": one},
        frozenset({"w"}),
        {"quantizer_args": {"per_channel_quantization": True}},
    )
    old = convert(file, "0.6.1")
    assert [f.rule for f in old.findings] == ["encodings/one-channel"]
    read_back = EncodingFile(
        "0.6.1",
        {"w": Encoding.per_tensor(1.0, bits=8, symmetric=True)},
        frozenset({"w"}),
        old.header,
    )
    facts = {"w": TensorFacts((1, 16), 0)}
    assert convert(read_back, "1.0.0", facts).encodings["w"].same_grid(one)
    without_header = EncodingFile("0.6.1", read_back.encodings, read_back.params)
    per_tensor = convert(without_header, "1.0.0", facts).encodings["w"]
    assert per_tensor.granularity is Granularity.PER_TENSOR


@pytest.mark.parametrize(
    ("shape", "axis", "rows"),
    [
        ((2, 16), 0, [[1.0, 2.0], [3.0, 4.0]]),
        ((16, 2), 1, [[1.0, 2.0], [3.0, 4.0]]),
        ((2, 16, 3, 3), 0, [[1.0, 2.0], [3.0, 4.0]]),
        ((16, 2, 3, 3), 1, [[1.0, 3.0], [2.0, 4.0]]),
    ],
)
def test_flat_blocks_are_channel_major_but_for_conv_transpose(
    shape: tuple[int, ...], axis: int, rows: list[list[float]]
) -> None:
    resolved = resolve(FLAT, TensorFacts(shape, axis, 1 - axis))
    assert resolved.stored_scale.tolist() == rows
    assert (resolved.axis, resolved.block_axis, resolved.ndim) == (axis, 1 - axis, len(shape))


def test_negative_axes_are_counted_from_the_front() -> None:
    known = Encoding.per_channel([1.0, 2.0], bits=8, symmetric=True, axis=-1)
    assert resolve(known, TensorFacts((4, 2), 1)).axis == 1


def test_per_tensor_and_float_encodings_need_nothing() -> None:
    facts = TensorFacts((2, 4), 0)
    assert resolve(ACTIVATION, facts) is ACTIVATION
    assert resolve(Encoding.floating(16), facts).scale is None


@pytest.mark.parametrize(
    ("encoding", "facts", "text"),
    [
        (INT8, TensorFacts((3, 4), 0, 1), r"covers 2 channels, the tensor of shape \[3, 4\] has 3"),
        (INT8, TensorFacts((2, 4), 2), "axis 2 is not an axis of a tensor of 2 axes"),
        (BIAS, TensorFacts((4, 2), 1), "channel axis is 0, the graph's is 1"),
        (FLAT, TensorFacts((2, 16), 0), "on a tensor that has no block axis"),
        (FLAT, TensorFacts((2, 24), 0, 1), "covers 16 inputs"),
        (FLAT, TensorFacts((3, 16), 0, 1), "4 block scales cannot be divided over 3 channels"),
        (
            resolve(FLAT, TensorFacts((2, 16), 0, 1)),
            TensorFacts((2, 8, 2), 0, 2),
            "block axis is 1, the graph's is 2",
        ),
    ],
)
def test_encodings_of_another_graph_are_refused_by_tensor(
    encoding: Encoding, facts: TensorFacts, text: str
) -> None:
    file = EncodingFile("1.0.0", {"w": encoding}, frozenset({"w"}))
    with pytest.raises(EncodingsError, match=text) as caught:
        convert(file, "2.0.0", {"w": facts})
    assert caught.value.where.tensor == "w"


def test_what_the_target_cannot_express_is_refused() -> None:
    blocks = EncodingFile("1.0.0", {"w": FLAT}, frozenset({"w"}))
    channels = EncodingFile("1.0.0", {"w": INT8}, frozenset({"w"}))
    for file, version, text in (
        (blocks, "0.6.1", "0.6.1 cannot express PER_BLOCK"),
        (blocks, "2.0.0", "needs the channel axis"),
        (channels, "2.0.0", "needs the channel axis"),
        (channels, "0.5.0", "cannot convert to encodings version '0.5.0'"),
    ):
        with pytest.raises(EncodingsError, match=text) as caught:
            convert(file, version)
        assert caught.value.hint
