"""The cases: how each is made, how it is built, and what is asked of it."""

from __future__ import annotations

from dataclasses import dataclass

_70B = ("--hidden", "8192", "--ff", "28672", "--heads", "64", "--adapters", "3")
_LARGE = ("--layers", "80", *_70B)
_ENCODINGS = ("--encodings", "--untied")


@dataclass(frozen=True)
class Case:
    """One build. `data` names the folder that `make` fills: cases with the same data share it.

    `runs` bounds the number of runs of a long case. `asks` is the requirement, in words. `hashed`
    are patterns of files in the case's folder that its floor hashes.
    """

    name: str
    title: str
    data: str
    make: tuple[str, ...]
    build: tuple[str, ...] = ("--beside-base",)
    runs: int | None = None
    asks: str = ""
    hashed: tuple[str, ...] = ()


CASES = (
    Case(
        "1b",
        "1B, float, beside the base",
        "1b",
        (),
        asks="1.5 s CPU beyond reading and writing the adapters, 250 MB",
    ),
    Case(
        "1b-onnxruntime",
        "1B, target onnxruntime, beside the base",
        "1b",
        (),
        build=("--beside-base", "--target", "onnxruntime"),
    ),
    Case(
        "1b-onnxruntime-int8",
        "1B, target onnxruntime with int8 LoRA weights, beside the base",
        "1b",
        (),
        build=("--beside-base", "--target", "onnxruntime", "--lora-weights", "int8"),
    ),
    Case(
        "1b-copy",
        "1B, float, with a copy of the data file (dense, 2.47 GB)",
        "1b_dense",
        ("--dense",),
        build=(),
        asks="as above plus the file copy",
    ),
    Case(
        "1b-8",
        "1B, float, beside the base, 8 use cases",
        "1b_8",
        ("--use-cases", "8"),
        asks="no more memory than with 2",
    ),
    Case(
        "1b-bf16",
        "1B, float, beside the base, bfloat16 adapter",
        "1b_bf16",
        ("--dtype", "BF16"),
    ),
    Case(
        "1b-enc",
        "1B, encodings 1.0.0, base and 1 use case (88 MB of JSON)",
        "1b_enc",
        _ENCODINGS,
        runs=3,
    ),
    Case(
        "1b-enc-8",
        "1B, encodings 1.0.0, base and 7 use cases (424 MB of JSON)",
        "1b_enc_8",
        (*_ENCODINGS, "--use-cases", "8"),
        runs=3,
        asks="no more memory than with 2",
    ),
    Case(
        "1b-exported",
        "1B, base and 4 graphs of use cases, each with a copy of the weights (dense, 12.4 GB)",
        "1b_exported",
        ("--dense", "--exported", "copied"),
        runs=3,
        asks="a small multiple of hashing the files, 300 MB",
        hashed=("model/*",),
    ),
    Case(
        "1b-exported-shared",
        "1B, base and 4 graphs of use cases that share its data file (dense)",
        "1b_exported_shared",
        ("--dense", "--exported", "shared"),
        asks="as above",
        runs=3,
        hashed=("model/*.onnx", "model/use_case_*.data"),
    ),
    Case(
        "70b",
        "80 layers, hidden 8192, float, beside the base, 3 adapters, 4 use cases",
        "70b",
        _LARGE,
        asks="10 s, 400 MB beyond the largest module's factors",
    ),
    Case(
        "70b-40",
        "the same with 40 layers",
        "70b_40",
        ("--layers", "40", *_70B),
        asks="half the time of 80 layers",
    ),
    Case(
        "70b-bf16",
        "80 layers as above, bfloat16 adapters",
        "70b_bf16",
        (*_LARGE, "--dtype", "BF16"),
        runs=3,
    ),
)
