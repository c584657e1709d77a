"""read(write(x)) == x for any content that a dialect can express."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lora_quant.encodings import aimet_0_6_1, aimet_1_0_0, aimet_2_0_0, fragment
from lora_quant.encodings.convert import TensorFacts, convert
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.encoding_file import EncodingFile

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
SCALES = st.floats(1e-12, 1e12)
OBJECTS = st.dictionaries(NAMES, st.integers())
ANYTHING = st.one_of(st.none(), st.booleans(), OBJECTS)
HEADERS = st.fixed_dictionaries(
    {}, optional={"producer": ANYTHING, "quantizer_args": OBJECTS, "excluded_layers": ANYTHING}
)


@st.composite
def offsets(draw: st.DrawFn, bits: int, count: int) -> list[float]:
    values = st.integers(-(2**bits) + 1, 0)
    return [float(v) for v in draw(st.lists(values, min_size=count, max_size=count))]


@st.composite
def per_tensor(draw: st.DrawFn) -> Encoding:
    bits = draw(st.sampled_from([2, 4, 8, 16]))
    return Encoding.per_tensor(
        draw(SCALES), draw(offsets(bits, 1))[0], bits=bits, symmetric=draw(st.booleans())
    )


@st.composite
def per_channel(draw: st.DrawFn, least: int, axis: bool) -> Encoding:
    bits, count = draw(st.sampled_from([2, 4, 8, 16])), draw(st.integers(least, 4))
    return Encoding.per_channel(
        draw(st.lists(SCALES, min_size=count, max_size=count)),
        draw(offsets(bits, count)),
        bits=bits,
        symmetric=draw(st.booleans()),
        axis=draw(st.integers(-2, 3)) if axis else None,
    )


@st.composite
def blockwise(draw: st.DrawFn, lpbq: bool) -> Encoding:
    """With the axes of a Linear, a MatMul, a Conv or a ConvTranspose weight."""
    channels, blocks = draw(st.integers(2, 4)), draw(st.integers(1, 3))
    axis = draw(st.integers(0, 1))
    axes = {"axis": axis, "block_axis": 1 - axis, "ndim": draw(st.sampled_from([2, 4]))}
    row = st.lists(SCALES, min_size=blocks, max_size=blocks)
    if lpbq:
        scale = st.lists(st.integers(1, 16), min_size=blocks, max_size=blocks)
        return Encoding.lpbq(
            draw(st.lists(SCALES, min_size=channels, max_size=channels)),
            draw(st.lists(scale, min_size=channels, max_size=channels)),
            compressed_bits=4,
            bits=8,
            block_size=draw(st.sampled_from([16, 64])),
            **axes,
        )
    bits = draw(st.sampled_from([2, 4, 8]))
    return Encoding.per_block(
        draw(st.lists(row, min_size=channels, max_size=channels)),
        [draw(offsets(bits, blocks)) for _ in range(channels)],
        bits=bits,
        symmetric=draw(st.booleans()),
        block_size=draw(st.sampled_from([16, 64])),
        **axes,
    )


FLOATS = st.sampled_from([16, 32]).map(Encoding.floating)
HALF_STEPS = st.builds(
    lambda s: Encoding.per_channel(s, [-1.5] * len(s), bits=2, symmetric=True, axis=0),
    st.lists(SCALES, min_size=2, max_size=3),
)


@st.composite
def files(draw: st.DrawFn, version: str | None, *kinds: Any) -> EncodingFile:
    names = draw(st.lists(NAMES, unique=True, max_size=5))
    encodings = {name: draw(st.one_of(*kinds)) for name in names}
    if version in ("2.0.0", None):
        header = draw(HEADERS) if version else {}
        return EncodingFile(version, encodings, header=header)
    params = frozenset(n for n in names if draw(st.booleans()))
    ordered = [*(n for n in names if n not in params), *(n for n in names if n in params)]
    return EncodingFile(version, {n: encodings[n] for n in ordered}, params, draw(HEADERS))


def check(dialect: Any, file: EncodingFile) -> None:
    document = dialect.write(file)
    again = dialect.read(document)
    assert again.findings == ()
    assert again.same_content(file)
    assert dialect.write(again) == document
    assert json.loads("".join(dialect.text(file))) == document


@given(files("0.6.1", per_tensor(), per_channel(2, axis=False), FLOATS, HALF_STEPS))
def test_0_6_1(file: EncodingFile) -> None:
    check(aimet_0_6_1, file)


@given(files("1.0.0", per_tensor(), per_channel(1, axis=False), FLOATS, HALF_STEPS))
def test_1_0_0(file: EncodingFile) -> None:
    check(aimet_1_0_0, file)


@given(files(None, per_tensor(), per_channel(1, axis=False), FLOATS))
def test_fragment(file: EncodingFile) -> None:
    check(fragment, file)


@given(
    files(
        "2.0.0",
        per_tensor(),
        per_channel(1, axis=True),
        HALF_STEPS,
        blockwise(lpbq=False),
        blockwise(lpbq=True),
    )
)
def test_2_0_0(file: EncodingFile) -> None:
    check(aimet_2_0_0, file)


@given(blockwise(lpbq=False) | blockwise(lpbq=True))
def test_blocks_survive_the_flat_order_of_1_0_0(encoding: Encoding) -> None:
    shape = [3] * (encoding.ndim or 0)
    assert encoding.axis is not None
    assert encoding.block_axis is not None
    shape[encoding.axis] = encoding.channels or 0
    shape[encoding.block_axis] = encoding.step_scale.shape[1] * (encoding.block_size or 0)
    facts = {"w": TensorFacts(tuple(shape), encoding.axis, encoding.block_axis)}
    flat = convert(EncodingFile("2.0.0", {"w": encoding}), "1.0.0", facts)
    again = aimet_1_0_0.read(aimet_1_0_0.write(flat))
    back = convert(again, "2.0.0", facts)
    assert back.encodings["w"].same_grid(encoding)
    assert back.encodings["w"].axis == encoding.axis
