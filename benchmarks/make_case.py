"""Make a case: a decoder graph over a sparse data file, random adapters, a lora_config.yaml.

    python benchmarks/make_case.py benchmarks/data/1b
    python benchmarks/make_case.py benchmarks/data/1b_exported --dense --exported copied
    python benchmarks/make_case.py benchmarks/data/70b --layers 80 --hidden 8192 --ff 28672 \
        --heads 64 --untied --adapters 3

The default is the shape of Llama-3.2-1B with one adapter of rank 16 on all seven projections.
Needs numpy and onnx. Use cases: base, one per adapter, then mixes of all adapters.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from case_adapters import write_adapter
from case_encodings import write_encodings
from case_exported import write_exported
from case_graph import build_graph, write_graph
from shape import Shape


@dataclass(frozen=True)
class UseCase:
    """A name, and the strength of each adapter that takes part."""

    name: str
    strengths: dict[str, float]


def use_cases(adapters: list[str], count: int) -> Iterator[UseCase]:
    """The first `count`: the base, each adapter alone, then all together at other strengths."""
    yield UseCase("base", {})
    yield from (UseCase(name, {name: 1.0}) for name in adapters[: count - 1])
    for number in range(count - 1 - len(adapters)):
        yield UseCase(f"mix_{number}", dict.fromkeys(adapters, 1.0 - number / 100))


def config_text(adapters: list[str], cases: list[UseCase], *, encodings: bool) -> str:
    """The lora_config.yaml of a case; paths are relative to it."""
    lines = ["adapter:"]
    for name in adapters:
        lines += [f"  - name: {name}", f"    lora_config: adapters/{name}"]
    lines.append("use-case:")
    for case in cases:
        lines += [
            f"  - name: {case.name}",
            f"    adapter_names: [{', '.join(case.strengths)}]",
            f"    adapter_alphas: [{', '.join(map(str, case.strengths.values()))}]",
            "    model_name: model/model.onnx",
        ]
        if encodings:
            lines.append(f"    quant_overrides: encodings/{case.name}.encodings")
    return "\n".join(lines) + "\n"


def make(arguments: argparse.Namespace) -> None:
    """Write the case; an old one of the same name goes away."""
    shape = Shape(
        layers=arguments.layers,
        hidden=arguments.hidden,
        ff=arguments.ff,
        heads=arguments.heads,
        kv_heads=arguments.kv_heads,
        vocab=arguments.vocab,
        tied=arguments.tied,
    )
    folder: Path = arguments.folder
    shutil.rmtree(folder, ignore_errors=True)
    write_graph(shape, folder / "model", dense=arguments.dense)
    if arguments.exported:
        write_exported(folder, shape, share_data=arguments.exported == "shared")
        return
    adapters = [chr(ord("a") + number) for number in range(arguments.adapters)]
    for seed, name in enumerate(adapters):
        write_adapter(folder / "adapters" / name, shape, arguments.rank, arguments.dtype, seed)
    count = arguments.use_cases or len(adapters) + 1
    cases = list(use_cases(adapters, count))
    if arguments.encodings:
        model, _ = build_graph(shape)
        for case in cases:
            path = folder / "encodings" / f"{case.name}.encodings"
            write_encodings(path, shape, model, arguments.rank * len(case.strengths))
    text = config_text(adapters, cases, encodings=arguments.encodings)
    (folder / "lora_config.yaml").write_text(text, encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    found.add_argument("folder", type=Path)
    for name, default in (
        ("layers", 16),
        ("hidden", 2048),
        ("ff", 8192),
        ("heads", 32),
        ("kv-heads", 8),
        ("vocab", 128256),
        ("rank", 16),
        ("adapters", 1),
    ):
        found.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    found.add_argument("--use-cases", type=int, help="default: the base and one per adapter")
    found.add_argument("--dtype", choices=("F32", "BF16"), default="F32", help="of the adapters")
    found.add_argument("--untied", dest="tied", action="store_false", help="own lm_head weight")
    found.add_argument("--dense", action="store_true", help="write every byte of the data file")
    found.add_argument("--encodings", action="store_true", help="AIMET encodings per use case")
    found.add_argument(
        "--exported",
        choices=("copied", "shared"),
        help="graphs of use cases instead of adapters, with a copy of the base's data each, or "
        "with that of the base",
    )
    return found


if __name__ == "__main__":
    make(parser().parse_args())
