"""`lora-quant init`: a lora_config.yaml for a base and adapters."""

from __future__ import annotations

from pathlib import Path

import click

from lora_quant.cli.config_output import output_options, show_draft, target_of
from lora_quant.cli.reported import reported
from lora_quant.cli.typed_paths import is_there, require_typed


@click.command("init", short_help="Write a lora_config.yaml for a base and adapters.")
@click.argument("base", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("adapters", nargs=-1, required=True, metavar="[NAME=]ADAPTER...")
@click.option(
    "--mix",
    "mixes",
    multiple=True,
    metavar="NAME=ADAPTER[:STRENGTH],...",
    help="A use case of several adapters, such as both=tone:1.0,legal:0.6; may be repeated.",
)
@click.option(
    "--encodings",
    multiple=True,
    metavar="NAME=FILE",
    help="AIMET encodings of a use case; may be repeated. The base's use case is called base.",
)
@click.option(
    "--attach-points",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Attach point mapping, for modules that the graph does not name.",
)
@output_options
def init_command(
    base: Path,
    adapters: tuple[str, ...],
    mixes: tuple[str, ...],
    encodings: tuple[str, ...],
    attach_points: Path | None,
    output: Path | None,
    force: bool,
    schema: bool,
    check: bool,
    as_json: bool,
) -> int:
    """Write a lora_config.yaml for the graph BASE and every ADAPTER.

    An ADAPTER is a folder or file of any format that `build` reads; its name is that of the folder
    unless NAME= says another. The use cases are the base alone, every adapter with the strength 1,
    and each --mix. Nothing is written unless every module finds its node, and `build` would take
    the file.
    """
    with reported("init", as_json=as_json):
        from lora_quant.configure.init import draft_config

        require_typed(base, "ONNX graph")
        require_typed(attach_points, "attach point mapping")
        target = target_of(output, force=force)
        named = _adapters(adapters)
        files = {name: Path(file) for name, file in _pairs("--encodings", encodings)}
        for path in named.values():
            require_typed(path, "adapter")
        for path in files.values():
            require_typed(path, "encodings file")
        from lora_quant.cli.progress import shown_progress

        with shown_progress(enabled=not as_json) as progress:
            draft = draft_config(
                base,
                named,
                mixes={name: _mix(name, text) for name, text in _pairs("--mix", mixes)},
                encodings=files,
                attach_points=attach_points,
                check=check,
                progress=progress,
            )
        return show_draft(
            "init", draft, target, force=force, schema=schema, as_json=as_json, partial=False
        )


def _adapters(given: tuple[str, ...]) -> dict[str, Path]:
    from lora_quant.configure.init import adapter_name

    found: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        # A path may hold a = of its own.
        whole = not equals or is_there(Path(text))
        key = adapter_name(Path(text)) if whole else name
        if not key:
            raise click.UsageError(f"{text!r} has no name before the =")
        if key in found:
            raise click.UsageError(
                f"two adapters are called {key!r}: {str(found[key])!r} and {text!r}; give one of "
                "them another name with NAME=PATH"
            )
        found[key] = Path(text if whole else path)
    return found


def _pairs(option: str, given: tuple[str, ...]) -> list[tuple[str, str]]:
    pairs: dict[str, str] = {}
    for text in given:
        name, equals, rest = text.partition("=")
        if not (name and equals and rest):
            raise click.UsageError(f"{option} is {text!r}, expected NAME=...")
        if name in pairs:
            raise click.UsageError(f"{option} is given twice for {name!r}")
        pairs[name] = rest
    return list(pairs.items())


def _mix(use_case: str, text: str) -> dict[str, float]:
    mix: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.rpartition(":") if ":" in part else (part, "", "1")
        name = name.strip()
        try:
            strength = float(number)
        except ValueError:
            strength = float("nan")
        if not name or strength - strength != 0:
            raise click.UsageError(
                f"--mix {use_case} holds {part!r}, expected ADAPTER:STRENGTH, such as tone:0.5"
            )
        if name in mix:
            raise click.UsageError(f"--mix {use_case} names {name!r} twice")
        mix[name] = strength
    return mix
