"""What is refused, and that the error names the tensor and the place in the document."""

from copy import deepcopy
from typing import Any

import pytest

from lora_quant.encodings import aimet_0_6_1, aimet_1_0_0, aimet_2_0_0, fragment
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.errors import EncodingsError

OLD = {"bitwidth": 8, "dtype": "int", "is_symmetric": "False", "max": 2.45, "min": -0.1,
       "offset": -10.0, "scale": 0.01}  # fmt: skip
NEW = {"bw": 8, "dtype": "INT", "enc_type": "PER_CHANNEL", "is_sym": True, "name": "w",
       "offset": [-128.0, -128.0], "scale": [0.1, 0.2]}  # fmt: skip
LPBQ = {"bw": 8, "block_size": 16, "compressed_bw": 4, "dtype": "INT", "enc_type": "LPBQ",
        "is_sym": True, "name": "w", "offset": [-128, -128], "per_block_int_scale": [1, 2, 3, 16],
        "scale": [0.1, 0.2]}  # fmt: skip
NEWEST = {"axis": 0, "name": "w", "output_dtype": "int8", "y_scale": [0.1, 0.2]}
BLOCKS = {"axis": 1, "block_size": 16, "name": "w", "output_dtype": "int4",
          "y_scale": [[0.1, 0.2], [0.3, 0.4]]}  # fmt: skip
LPBQ_2 = {"axis": 1, "block_size": 16, "name": "w", "output_dtype": "int4",
          "per_block_int_scale": [[1, 2]], "per_channel_float_scale": [[0.1]]}  # fmt: skip


def old(*entries: Any, version: str = "0.6.1") -> dict[str, Any]:
    return {"activation_encodings": {}, "param_encodings": {"w": list(entries)}, "version": version}


def new(*entries: Any) -> dict[str, Any]:
    return {"activation_encodings": [], "param_encodings": list(entries), "version": "1.0.0"}


def newest(*entries: Any) -> dict[str, Any]:
    return {"encodings": list(entries), "version": "2.0.0"}


def changed(entry: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {k: v for k, v in {**deepcopy(entry), **changes}.items() if v is not ...}


REFUSED: list[tuple[Any, dict[str, Any], str, str]] = [
    (aimet_0_6_1, old(), "expected a list of at least one entry, got a list of 0",
     "param_encodings.w"),
    (aimet_0_6_1, old(changed(OLD, offset=11)), "offset is 11.0", "param_encodings.w[0]"),
    (aimet_0_6_1, old(changed(OLD, scale=0)), "scale is 0.0", "param_encodings.w[0]"),
    (aimet_0_6_1, old(OLD, changed(OLD, offset=1)), r"offset\[1\] is 1.0", "param_encodings.w"),
    (aimet_0_6_1, old(changed(OLD, scale=...)), "no 'scale'", "param_encodings.w[0]"),
    (aimet_0_6_1, old(changed(OLD, scale="1")), "expected a number, got '1'",
     "param_encodings.w[0].scale"),
    (aimet_0_6_1, old(OLD, changed(OLD, scale=True)), "expected a number, got true",
     "param_encodings.w[1].scale"),
    (aimet_0_6_1, old(changed(OLD, dtype="INT")), "got 'INT', expected one of 'int', 'float'",
     "param_encodings.w[0].dtype"),
    (aimet_0_6_1, old(changed(OLD, bitwidth=8.0)), "expected an integer, got 8.0",
     "param_encodings.w[0].bitwidth"),
    (aimet_0_6_1, old(changed(OLD, is_symmetric="yes")), 'expected true, false, "True"',
     "param_encodings.w[0].is_symmetric"),
    (aimet_0_6_1, old(OLD, changed(OLD, bitwidth=4)), "differ in 'bitwidth'",
     "param_encodings.w[0].bitwidth"),
    (aimet_0_6_1, old(OLD, changed(OLD, scale=...)), "same keys as the first",
     "param_encodings.w[1]"),
    (aimet_0_6_1, old(OLD, 3), "same keys as the first", "param_encodings.w[1]"),
    (aimet_0_6_1, old(3), "expected an object, got 3", "param_encodings.w[0]"),
    (aimet_0_6_1, {"param_encodings": [], "version": "0.6.1"}, "got a list of 0",
     "param_encodings"),
    (aimet_0_6_1, {"activation_encodings": {"w": [OLD]}, "param_encodings": {"w": [OLD]},
                   "version": "0.6.1"}, "a second entry", "param_encodings.w"),
    (aimet_1_0_0, new(NEW, NEW), "a second entry", "param_encodings[1]"),
    (aimet_1_0_0, new(3), "expected an object, got 3", "param_encodings[0]"),
    (aimet_1_0_0, new(changed(NEW, name=...)), "no 'name'", "param_encodings[0]"),
    (aimet_1_0_0, new(changed(NEW, name=7)), "expected text, got 7", "param_encodings[0].name"),
    (aimet_1_0_0, new(changed(NEW, enc_type="VECTOR")),
     "got 'VECTOR', expected one of 'PER_TENSOR'",
     "param_encodings[0].enc_type"),
    (aimet_1_0_0, new(changed(NEW, is_sym=1)), "got 1", "param_encodings[0].is_sym"),
    (aimet_1_0_0, new(changed(NEW, scale=[0.1, None])), "got null", "param_encodings[0].scale"),
    (aimet_1_0_0, new(changed(NEW, scale=[0.1, "x" * 99])), r"got 'x{56}\.\.\.",
     "param_encodings[0].scale"),
    (aimet_1_0_0, new(changed(NEW, scale=[[0.1], [0.2]])), "expected a flat list",
     "param_encodings[0].scale"),
    (aimet_1_0_0, new(changed(NEW, scale=[[0.1], [0.2, 0.3]])), "equal lengths",
     "param_encodings[0].scale"),
    (aimet_1_0_0, new(changed(NEW, scale=[0.1, 10**400])), "too large for a double",
     "param_encodings[0].scale"),
    (aimet_1_0_0, new(changed(NEW, scale=0.1)), "expected a flat list", "param_encodings[0].scale"),
    (aimet_1_0_0, new(changed(NEW, offset=[-128.0])), r"shape \[2\] but offset has \[1\]",
     "param_encodings[0]"),
    (aimet_1_0_0, new(changed(NEW, offset=[-128, 1])), r"offset\[1\] is 1.0", "param_encodings[0]"),
    (aimet_1_0_0, new(changed(NEW, enc_type="PER_TENSOR")), "PER_TENSOR with 2 scales",
     "param_encodings[0]"),
    (aimet_1_0_0, new(changed(NEW, enc_type="PER_BLOCK")), "no 'block_size'", "param_encodings[0]"),
    (aimet_1_0_0, new(changed(NEW, zero_point_shift=[0.5])), "not one per offset",
     "param_encodings[0].zero_point_shift"),
    (aimet_1_0_0, new(changed(LPBQ, per_block_int_scale=[1, 2, 3])),
     "3 block scales cannot be divided",
     "param_encodings[0]"),
    (aimet_1_0_0, new(changed(LPBQ, per_block_int_scale=[1, 2, 3, 0])), r"block scale\[1, 1\] is 0",
     "param_encodings[0]"),
    (aimet_1_0_0, new(changed(LPBQ, offset=[-8, -8])), "one offset of -128 per channel",
     "param_encodings[0].offset"),
    (aimet_1_0_0, new(changed(LPBQ, bw=2**40)), "1099511627776 bits, expected",
     "param_encodings[0]"),
    (aimet_1_0_0, new(changed(LPBQ, scale=[], offset=[])), "LPBQ needs at least one channel",
     "param_encodings[0].scale"),
    (aimet_1_0_0, {"param_encodings": {}, "version": "1.0.0"}, "got an object", "param_encodings"),
    (aimet_2_0_0, newest(NEWEST, NEWEST), "a second entry", "encodings[1]"),
    (aimet_2_0_0, {"version": "2.0.0"}, "expected a list of entries, got null", "encodings"),
    (aimet_2_0_0, newest(changed(NEWEST, output_dtype="float8e4m3fn")), "'float8e4m3fn' is not",
     "encodings[0].output_dtype"),
    (aimet_2_0_0, newest(changed(NEWEST, y_scale={"scale": [1]})), "double quantization",
     "encodings[0].y_scale"),
    (aimet_2_0_0, newest(changed(NEWEST, y_scale=...)), "no 'y_scale'", "encodings[0]"),
    (aimet_2_0_0, newest(changed(NEWEST, axis=...)), "no 'axis'", "encodings[0]"),
    (aimet_2_0_0, newest(changed(NEWEST, y_zero_point=[1])), r"shape \[1\] is not that of",
     "encodings[0].y_zero_point"),
    (aimet_2_0_0, newest(changed(NEWEST, y_zero_point=[0, 129])), r"offset\[1\] is -257.0",
     "encodings[0]"),
    (aimet_2_0_0, newest(changed(BLOCKS, axis=2)), "axis 2 is not an axis of block scales",
     "encodings[0].axis"),
    (aimet_2_0_0, newest(changed(BLOCKS, y_scale=[[[0.1, 1.0], [0.2, 1.0]]] * 2)),
     "vary over more than a channel and a block axis", "encodings[0]"),
    (aimet_2_0_0, newest(changed(LPBQ_2, per_channel_float_scale=[0.1])),
     r"expected shape \[1, 1\], got \[1\]", "encodings[0].per_channel_float_scale"),
    (aimet_2_0_0, newest(changed(LPBQ_2, output_dtype="uint4")), "LPBQ is signed",
     "encodings[0].output_dtype"),
    (aimet_2_0_0, newest(changed(LPBQ_2, per_block_int_scale=...)), "no 'per_block_int_scale'",
     "encodings[0]"),
    (fragment, {"w": changed(NEW, name="v")}, "under 'w' names another tensor", "w.name"),
    (fragment, {"w": []}, "expected an object, got a list of 0", "w"),
]  # fmt: skip


@pytest.mark.parametrize(("dialect", "document", "text", "field"), REFUSED)
def test_a_malformed_entry_is_refused_with_its_place(
    dialect: Any, document: dict[str, Any], text: str, field: str
) -> None:
    with pytest.raises(EncodingsError, match=text) as caught:
        dialect.read(document)
    assert caught.value.where.field == field
    names_no_tensor = field in ("param_encodings", "encodings") or any(
        part in text for part in ("no 'name'", "expected text", "expected an object, got 3")
    )
    if not (names_no_tensor and dialect is not aimet_0_6_1):
        expected = None if field == "param_encodings" else "w"
        assert caught.value.where.tensor == expected


def test_the_symmetry_of_0_6_1_is_read_in_both_spellings() -> None:
    for value, expected in (("True", True), ("False", False), (True, True), (False, False)):
        file = aimet_0_6_1.read(old(changed(OLD, is_symmetric=value)))
        assert file.encodings["w"].symmetric is expected
        assert aimet_0_6_1.write(file)["param_encodings"]["w"][0]["is_symmetric"] == str(expected)


def test_0_4_0_has_no_dtype_and_0_5_0_no_quantizer_args() -> None:
    entry = changed(OLD, dtype=...)
    file = aimet_0_6_1.read(old(entry, version="0.4.0"))
    assert aimet_0_6_1.write(file)["param_encodings"]["w"][0].keys() == entry.keys()
    five = aimet_0_6_1.read(old(OLD, version="0.5.0"))
    assert aimet_0_6_1.write(five)["version"] == "0.5.0"
    floating = EncodingFile("0.4.0", {"w": Encoding.floating(16)}, frozenset({"w"}))
    with pytest.raises(EncodingsError, match=r"0\.4\.0 cannot say .* floating point"):
        aimet_0_6_1.write(floating)


def test_a_range_that_tells_of_another_grid_is_reported_and_not_used() -> None:
    file = aimet_0_6_1.read(old(OLD, changed(OLD, max=9.0)))
    (finding,) = file.findings
    assert finding.rule == "encodings/stale-range"
    assert finding.message.startswith("max is 9.0 but scale and offset give 2.45")
    assert finding.where.field == "param_encodings.w[1].max"
    assert file.encodings["w"].maximum.tolist() == [2.45, 2.45]


def test_a_range_in_float32_is_no_finding() -> None:
    entry = changed(OLD, bitwidth=16, offset=-32768.0, scale=1e-3, min=-32.76799774169922,
                    max=32.766998291015625)  # fmt: skip
    assert aimet_0_6_1.read(old(entry)).findings == ()


def test_keys_that_are_not_known_are_reported_once_each() -> None:
    for dialect, document in (
        (aimet_0_6_1, old(changed(OLD, colour=1))),
        (aimet_1_0_0, new(changed(NEW, colour=1), changed(NEW, name="v", colour=2))),
        (aimet_2_0_0, newest(changed(NEWEST, colour=1))),
        (fragment, {"w": changed(NEW, colour=1)}),
    ):
        (finding,) = dialect.read(document).findings
        assert finding.rule == "encodings/unknown-key"
        assert "'colour'" in finding.message
        assert finding.where.tensor == "w"


def test_2_1_0_without_objects_is_read_as_2_0_0() -> None:
    document = {**newest(NEWEST), "version": "2.1.0"}
    assert aimet_2_0_0.write(aimet_2_0_0.read(document)) == document


def test_a_scalar_zero_point_holds_for_every_channel() -> None:
    file = aimet_2_0_0.read(newest(changed(NEWEST, output_dtype="uint8", y_zero_point=3)))
    assert file.encodings["w"].stored_offset.tolist() == [-3.0, -3.0]


def test_a_negative_block_axis_is_counted_from_the_front() -> None:
    file = aimet_2_0_0.read(newest(changed(BLOCKS, axis=-1)))
    assert file.encodings["w"].block_axis == 1


def test_fractional_offsets_of_aimet_torch_are_half_steps() -> None:
    entry = changed(NEW, bw=2, offset=[-1.5, -1.5])
    (written,) = aimet_1_0_0.write(aimet_1_0_0.read(new(entry)))["param_encodings"]
    assert (written["offset"], written["zero_point_shift"]) == ([-2.0, -2.0], [0.5, 0.5])


CANNOT: list[tuple[Any, EncodingFile, str]] = [
    (
        aimet_0_6_1,
        EncodingFile(
            "0.6.1",
            {"w": Encoding.per_block([1.0], bits=4, symmetric=True, block_size=16)},
            frozenset({"w"}),
        ),
        "0.6.1 cannot express PER_BLOCK",
    ),
    (
        aimet_2_0_0,
        EncodingFile("2.0.0", {"w": Encoding.per_channel([1.0], bits=8, symmetric=True)}),
        "needs the channel axis",
    ),
    (
        aimet_2_0_0,
        EncodingFile(
            "2.0.0", {"w": Encoding.per_block([1.0], bits=4, symmetric=True, block_size=16, axis=0)}
        ),
        "needs the block axis",
    ),
    (aimet_2_0_0, EncodingFile("2.0.0", {"w": Encoding.floating(16)}), "no entry for a tensor"),
    (
        aimet_2_0_0,
        EncodingFile("2.0.0", {"w": Encoding.per_tensor(1.0, 0, bits=32, symmetric=False)}),
        "no type uint32",
    ),
    (
        aimet_2_0_0,
        EncodingFile(
            "2.0.0", {"w": Encoding.lpbq([1.0], [[1]], compressed_bits=2, bits=8, block_size=16)}
        ),
        "decompresses int2 to twice its width, not to 8",
    ),
    (aimet_1_0_0, EncodingFile("1.0.0", {}), "does not tell which entries are parameters"),
    (fragment, EncodingFile(None, {}, header={"producer": 1}), "has no place for 'producer'"),
]


@pytest.mark.parametrize(("dialect", "file", "text"), CANNOT)
def test_what_a_dialect_cannot_express_is_refused(
    dialect: Any, file: EncodingFile, text: str
) -> None:
    with pytest.raises(EncodingsError, match=text) as caught:
        dialect.write(file)
    assert caught.value.where.tensor == ("w" if file.encodings else None)
    assert caught.value.hint


@pytest.mark.parametrize("document", [old(OLD), new(NEW), newest(NEWEST)])
def test_a_header_that_no_schema_would_let_out_is_refused(document: dict[str, Any]) -> None:
    readers = {"0.6.1": aimet_0_6_1, "1.0.0": aimet_1_0_0, "2.0.0": aimet_2_0_0}
    with pytest.raises(EncodingsError, match="expected an object, got 'AIMET 2'") as caught:
        readers[document["version"]].read({**document, "quantizer_args": "AIMET 2"})
    assert caught.value.where.field == "quantizer_args"
