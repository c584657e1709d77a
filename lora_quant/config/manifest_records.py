"""The parts of `pack.json`; `manifest.py` holds the whole and the rules between the parts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, Strict, StringConstraints, WithJsonSchema
from pydantic_core import PydanticCustomError

from lora_quant.config.base_model import ConfigModel, is_relative_text
from lora_quant.config.names import FolderName, PlainName

_RELATIVE_PATTERN = r"^(?![A-Za-z]:)[^/\\\x00][^\\\x00]*(?![\s\S])"


def _check_relative(text: str) -> str:
    if not text or not is_relative_text(text):
        raise PydanticCustomError(
            "rule",
            "{text}",
            {
                "text": f"the path {text!r} is not relative with forward slashes",
                "hint": "a manifest holds no absolute paths, so that a pack can be moved",
            },
        )
    return text


RelativePath = Annotated[
    str,
    AfterValidator(_check_relative),
    WithJsonSchema({"type": "string", "minLength": 1, "pattern": _RELATIVE_PATTERN}),
]
"""A path relative to the folder of the manifest, with forward slashes on every platform."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$", min_length=64, max_length=64)]
Count = Annotated[int, Field(ge=0)]
Shape = Annotated[tuple[Count, ...], Strict(False)]


class ToolRecord(ConfigModel):
    """The program that wrote the pack."""

    name: str = Field(min_length=1)
    version: str = Field(min_length=1)


class StoredFile(ConfigModel):
    """A file that was read. Large files may be hashed by samples instead of whole."""

    path: RelativePath | None = Field(
        default=None, description="Relative to the manifest; absent if it is on another drive."
    )
    size: Count = Field(description="Size in bytes.")
    sha256: Sha256 | None = Field(default=None, description="Hash of the whole content.")
    sampled_sha256: Sha256 | None = Field(
        default=None, description="Hash of samples of the content."
    )


class InputRecord(StoredFile):
    """An input other than the base graph."""

    role: PlainName = Field(
        description="What it was read as: config, attach-points, map-from, adapter, encodings, "
        "updatable-tensors, graph, graph-data."
    )
    name: PlainName | None = Field(
        default=None, description="The adapter or use case that it belongs to, if it is of one."
    )


class BaseRecord(ConfigModel):
    """The base graph that the branches were added to."""

    graph: StoredFile = Field(description="The ONNX file as it was given.")
    data: Annotated[tuple[StoredFile, ...], Strict(False)] = Field(
        default=(), description="Its external data files."
    )
    beside_base: bool = Field(
        description="Whether the new graph was written into the base's own folder, to share them."
    )


class GateRecord(ConfigModel):
    """The graph input [batch, tokens, *shape] that multiplies the strengths per token; 1 is on."""

    tensor: PlainName = Field(description="Name of the graph input.")
    dtype: str = Field(description="ONNX element type in lower case, such as float.", min_length=1)
    shape: Shape = Field(
        description="Shape after batch and tokens: that of the strengths, in their layout."
    )


class AlphaRecord(ConfigModel):
    """The graph input that carries the strengths."""

    tensor: PlainName = Field(description="Name of the graph input.")
    layout: Literal["slot", "rank", "one"] = Field(
        description="slot: one strength per slot; rank: one scale per rank position, "
        "alpha_i * scale_i in the range of slot i; one: a single strength for all slots, in a "
        "graph that was given with its branches."
    )
    dtype: str = Field(description="ONNX element type in lower case, such as float.", min_length=1)
    shape: Shape = Field(description="Shape of the input.")
    gate: GateRecord | None = Field(
        default=None, description="The input for the gates; absent if no adapter is gated."
    )


class AdapterRecord(ConfigModel):
    """An adapter that at least one use case names."""

    name: PlainName
    kind: str = Field(description="Kind of the adapter, such as LORA.", min_length=1)
    format: str = Field(default="peft", description="What its files were written by.", min_length=1)
    task_id: Count | None = Field(
        default=None, description="The task, of a kind that was trained for several."
    )
    invocation_tokens: Annotated[tuple[Count, ...], Strict(False)] = Field(
        default=(),
        description="Its gate is 1 from the start of the last occurrence of these token ids on, "
        "and 0 before; empty if it is not gated.",
    )
    max_error: float | None = Field(
        default=None,
        ge=0,
        description="Largest relative Frobenius error of an approximated layer; absent if the "
        "adapter is exact.",
    )
    rank: Count = Field(description="Rank positions that it takes in a slot.")
    scale: float = Field(description="The adapter-wide factor, lora_alpha / r for plain LoRA.")
    sha256: Annotated[tuple[Sha256, ...], Strict(False)] = Field(
        default=(), description="Hashes of its files, in the order they are configured."
    )


class ModuleRecord(ConfigModel):
    """Output rows `[offset, offset + size)` of an attach point that belong to one module."""

    module: PlainName
    offset: Count
    size: Annotated[int, Field(ge=1)]


class BranchTensors(ConfigModel):
    """Tensors of one branch: y = h + l, l = B m, m = s * a, a = A x."""

    a_weight: PlainName
    b_weight: PlainName
    x: PlainName
    h: PlainName
    a: PlainName
    m: PlainName
    l: PlainName  # noqa: E741  (the field's letter for the branch's contribution)
    y: PlainName
    relayouts: Annotated[tuple[PlainName, ...], Strict(False)] = Field(
        default=(), description="Tensors between them that only change the layout."
    )


class VectorRecord(ConfigModel):
    """A vector of y = g * (W (h * x) + b) + B (s * (A x)) + c at one attach point."""

    vector: Literal["g", "h", "c"]
    weight: PlainName
    output: PlainName = Field(description="The tensor that it gives.")


class RouterRecord(ConfigModel):
    """A branch that weighs its ranks by a softmax over experts, averaged over the tokens."""

    weight: PlainName
    expansion: PlainName
    rest: PlainName


class AttachPointRecord(ConfigModel):
    """Where a branch or a vector was added."""

    name: PlainName
    modules: Annotated[tuple[ModuleRecord, ...], Strict(False)] = Field(
        min_length=1, description="One module, or one per part of a fused projection."
    )
    node: PlainName = Field(description="The node that computes W x.")
    form: Literal["matmul", "conv", "embedding"] = Field(description="How the branch computes.")
    in_features: Annotated[int, Field(ge=1)] = Field(
        validation_alias="in", serialization_alias="in"
    )
    out_features: Annotated[int, Field(ge=1)] = Field(
        validation_alias="out", serialization_alias="out"
    )
    tensors: BranchTensors | None = Field(
        default=None, description="The branch; absent where no adapter has low rank."
    )
    vectors: Annotated[tuple[VectorRecord, ...], Strict(False)] = ()
    router: RouterRecord | None = None


class TensorRecord(ConfigModel):
    """A tensor whose values a weight pack replaces."""

    name: PlainName
    shape: Shape
    dtype: str = Field(description="ONNX element type in lower case.", min_length=1)
    role: PlainName = Field(
        description="a_weight, b_weight, expansion, g, h, c, router, router_expansion, "
        "router_rest, scale for constants that scale branches of a given graph, or replaced for a "
        "parameter of the base."
    )


class SlotRecord(ConfigModel):
    """An adapter's rank range `[start, start + rank)` within a use case."""

    adapter: PlainName
    start: Count
    rank: Count
    alpha: float = Field(description="Compiled strength.")
    scale: float = Field(description="The adapter-wide factor that multiplies the strength.")
    gated: bool = Field(
        default=False, description="Whether the application feeds the gate of this slot."
    )
    beyond_alpha: Annotated[
        tuple[Literal["g", "h", "c", "parameters", "prompt"], ...], Strict(False)
    ] = Field(
        default=(),
        description="Parts of the adapter that do not follow the strength at run time: vectors, "
        "replaced parameters, a soft prompt.",
    )


class PromptRecord(ConfigModel):
    """The soft prompt of a use case, and the inputs of the graph that it feeds."""

    adapter: PlainName
    form: Literal["prefix_embeds", "past_key_values"] = Field(
        description="prefix_embeds [tokens, dim], put before the embedded tokens; past_key_values "
        "[2 * layers, heads, tokens, head dim], keys before values, layer by layer."
    )
    shape: Shape = Field(
        description="Shape of the values in the prompt's file: [tokens, dim] for prefix_embeds, "
        "[2 * layers, heads, tokens, head dim] for past_key_values."
    )
    inputs: Annotated[tuple[PlainName, ...], Strict(False)] = Field(
        min_length=1,
        description="The one input [batch, tokens, dim] that it begins, or one input "
        "[batch, heads, past, head dim] for every key and value, in the order of the first axis.",
    )


class UseCaseRecord(ConfigModel):
    """One use case; its files are those of the targets that carry its name."""

    name: FolderName
    slots: Annotated[tuple[SlotRecord, ...], Strict(False)] = ()
    prompt: PromptRecord | None = None


class PackFile(ConfigModel):
    """A file that was written."""

    role: PlainName = Field(
        description="What it is: graph, graph-data, base-encodings, lora-tensor-names, "
        "importer-config, output-files, weights, adapter, prompt, quant-overrides, "
        "quant-updatable-tensors, genie-lora, qnn-lora-config, context, context-data, companion."
    )
    use_case: FolderName | None = Field(
        default=None, description="The use case it belongs to; absent if it is of all."
    )
    path: RelativePath
    size: Count
    sha256: Sha256


class OverridableRecord(ConfigModel):
    """A graph input with a default, which the adapter of a use case may replace."""

    name: PlainName
    dtype: str = Field(description="ONNX element type in lower case.", min_length=1)
    shape: Annotated[tuple[Annotated[int, Field(ge=-1)], ...], Strict(False)] = Field(
        description="Its shape; -1 for ranks, which every use case has as many of as it needs."
    )
    role: PlainName = Field(
        description="What it holds: alpha, the role of a weight (a_weight, b_weight, ...), ratio "
        "for the scale of a module's ranks, or activation."
    )
    part: Literal["values", "scale", "zero_point"] = Field(
        default="values",
        description="Whether these are the values, or part of the grid that they are quantized on.",
    )
    of: PlainName | None = Field(
        default=None, description="The tensor that it belongs to, of a part that is not the values."
    )


class TargetRecord(ConfigModel):
    """What was written for one target."""

    name: FolderName
    files: Annotated[tuple[PackFile, ...], Strict(False)] = ()
    alpha: AlphaRecord | None = Field(
        default=None,
        description="The input for the strengths of this target's graph, where its layout is not "
        "that of the pack.",
    )
    inputs: Annotated[tuple[OverridableRecord, ...], Strict(False)] = Field(
        default=(), description="The inputs that the adapter of a use case replaces."
    )
    fingerprint: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(
        default=None,
        description="Of the graph and its base; every adapter file has it as its model version.",
    )
    htp_arch: str | None = Field(
        default=None,
        description="The architecture of the HTP that the graph was made for, and that its context "
        "is compiled for.",
    )
