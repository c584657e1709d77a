"""One dialect to another: what is lossless, what needs the graph, and what is refused.

Per tensor and per channel are lossless between 0.6.1 and 1.0.0. 2.0.0 stores axes and keeps the
weight's own order of axes, so a file that comes from 0.6.1 or 1.0.0 needs the shapes of the graph's
weights. Blocks cannot go to 0.6.1, tensors that stay in float have no entry in 2.0.0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lora_quant.encodings import aimet_0_6_1, aimet_1_0_0, aimet_2_0_0
from lora_quant.encodings.block_layout import order_is_block_major, unflatten
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.encodings.kinds import Granularity, NumberKind
from lora_quant.errors import EncodingsError, Where
from lora_quant.findings import Finding, Severity

WRITABLE = (aimet_0_6_1.VERSION, aimet_1_0_0.VERSION, aimet_2_0_0.VERSION)
"""The versions that a file can be converted to."""


@dataclass(frozen=True)
class TensorFacts:
    """Shape and axes of a weight, or of another constant with a per-channel grid (a bias).

    channel_axis: of Conv and Gemm transB 0; of MatMul `[in, out]`, Gemm and ConvTranspose 1.
    block_axis: the axis of the inputs, None if it has none.
    """

    shape: tuple[int, ...]
    channel_axis: int
    block_axis: int | None = None


FactsOf = Mapping[str, TensorFacts] | Callable[[str], TensorFacts | None]
"""Facts by tensor name; there are none for activations."""


def resolve(encoding: Encoding, facts: TensorFacts) -> Encoding:
    """The same grid with its axes filled in and its blocks as `[channels, blocks]`.

    Per-tensor and float encodings come back as they are. Raises EncodingsError if the encoding
    does not fit the shape, or names other axes than `facts`.
    """
    scale = encoding.scale
    if scale is None or encoding.granularity is Granularity.PER_TENSOR:
        return encoding
    ndim = len(facts.shape)
    channel_axis = _axis(facts.channel_axis, ndim)
    channels = facts.shape[channel_axis]
    if encoding.axis is not None and _axis(encoding.axis, ndim) != channel_axis:
        raise EncodingsError(
            f"the encoding's channel axis is {encoding.axis}, the graph's is {channel_axis}"
        )
    if encoding.granularity is Granularity.PER_CHANNEL:
        _expect(scale.size, channels, "channels", facts)
        return replace(encoding, axis=channel_axis)
    if facts.block_axis is None:
        raise EncodingsError("a blockwise encoding on a tensor that has no block axis")
    block_axis, size = _axis(facts.block_axis, ndim), encoding.block_size or 1
    if encoding.block_axis is not None and encoding.block_axis != block_axis:
        raise EncodingsError(
            f"the encoding's block axis is {encoding.block_axis}, the graph's is {block_axis}"
        )
    resolved = replace(encoding, axis=channel_axis, block_axis=block_axis, ndim=ndim)
    if encoding.block_axis is None:
        resolved = _with_channels(
            resolved, channels, order_is_block_major(channel_axis, block_axis, ndim)
        )
    _expect(resolved.channels or 0, channels, "channels", facts)
    _expect(resolved.step_scale.shape[1] * size, facts.shape[block_axis], "inputs", facts)
    return resolved


def _with_channels(encoding: Encoding, channels: int, block_major: bool) -> Encoding:
    """Blocks in the flat order of 1.0.0 as `[channels, blocks]`."""

    def reordered(array: NDArray[np.float64]) -> NDArray[np.float64]:
        return unflatten(array, channels, block_major=block_major)

    if encoding.block_scale is not None:
        return replace(encoding, block_scale=reordered(encoding.block_scale))
    return replace(
        encoding,
        scale=reordered(encoding.stored_scale),
        offset=reordered(encoding.stored_offset),
    )


def convert(
    file: EncodingFile, version: str, facts: FactsOf | None = None, *, int32_bias: bool = True
) -> EncodingFile:
    """`file` in another version, ready to be written; its findings are those of the conversion.

    facts: shapes of the graph's weights, needed to and from 2.0.0 and for blocks. Coming from a
    dialect that does not tell, the tensors that have facts are the parameters. int32_bias: False
    leaves out 32-bit entries, which AIMET's own strict loading does not take.

    Raises EncodingsError, naming the tensor, if the version cannot express an encoding.
    """
    if version not in WRITABLE:
        raise EncodingsError(
            f"cannot convert to encodings version {version!r}",
            hint=f"known: {', '.join(WRITABLE)}",
        )
    facts_of = _lookup(facts)
    findings: list[Finding] = []
    encodings: dict[str, Encoding] = {}
    for name, encoding in file.encodings.items():
        if not int32_bias and encoding.kind is NumberKind.INT and encoding.bits == 32:
            findings.append(_left_out(name, "int32-bias", "the 32-bit entry is left out"))
            continue
        try:
            converted = _convert_one(name, encoding, file, version, facts_of(name), findings)
        except EncodingsError as error:
            where = replace(error.where, tensor=name)
            raise EncodingsError(error.message, where=where, hint=error.hint) from None
        if converted is not None:
            encodings[name] = converted
    params: frozenset[str] | None = None
    if version != aimet_2_0_0.VERSION:
        known = file.params
        if known is None:
            known = frozenset(name for name in encodings if facts_of(name) is not None)
        params = known.intersection(encodings)
    return EncodingFile(version, encodings, params, file.header, tuple(findings))


def _convert_one(
    name: str,
    encoding: Encoding,
    file: EncodingFile,
    version: str,
    facts: TensorFacts | None,
    findings: list[Finding],
) -> Encoding | None:
    if facts is not None:
        encoding = _as_channel_if_meant(encoding, file, facts)
        encoding = resolve(encoding, facts)
    if version == aimet_2_0_0.VERSION:
        if encoding.kind is NumberKind.FLOAT:
            text = "2.0.0 has no entry for a tensor that stays in floating point; it is left out"
            findings.append(_left_out(name, "float-left-out", text))
            return None
        aimet_2_0_0.check_expressible(encoding)
    if version == aimet_0_6_1.VERSION:
        aimet_0_6_1.check_expressible(encoding)
        if encoding.granularity is Granularity.PER_CHANNEL and encoding.channels == 1:
            text = "0.6.1 cannot tell one channel from per tensor"
            findings.append(
                Finding("encodings/one-channel", Severity.NOTE, text, Where(tensor=name))
            )
    return encoding


def _as_channel_if_meant(encoding: Encoding, file: EncodingFile, facts: TensorFacts) -> Encoding:
    """A single 0.6.x entry of a one-channel weight, per channel if the file's header says so.

    A LoRA weight of rank 1 is such a case; the grid is the same, but AIMET does not load a
    per-tensor entry into a per-channel quantizer.
    """
    arguments = file.header.get("quantizer_args")
    per_channel = isinstance(arguments, Mapping) and (
        arguments.get("per_channel_quantization") is True
    )
    if (
        per_channel
        and file.version in aimet_0_6_1.VERSIONS
        and encoding.granularity is Granularity.PER_TENSOR
        and encoding.scale is not None
        and encoding.offset is not None
        and facts.shape[facts.channel_axis] == 1
    ):
        return replace(
            encoding,
            granularity=Granularity.PER_CHANNEL,
            scale=encoding.scale.reshape(1),
            offset=encoding.offset.reshape(1),
        )
    return encoding


def _lookup(facts: FactsOf | None) -> Callable[[str], TensorFacts | None]:
    if facts is None:
        return lambda _name: None
    return facts.get if isinstance(facts, Mapping) else facts


def _left_out(name: str, rule: str, text: str) -> Finding:
    return Finding(f"encodings/{rule}", Severity.NOTE, text, Where(tensor=name))


def _axis(axis: int, ndim: int) -> int:
    if not -ndim <= axis < ndim:
        raise EncodingsError(f"axis {axis} is not an axis of a tensor of {ndim} axes")
    return axis % ndim


def _expect(got: int, expected: int, what: str, facts: TensorFacts) -> None:
    if got != expected:
        raise EncodingsError(
            f"the encoding covers {got} {what}, the tensor of shape {list(facts.shape)} has "
            f"{expected}",
            hint="the encodings are of another graph, or of another layout of the weight",
        )
