"""`lora-quant build`: a configuration in, a pack out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click

from lora_quant.cli.dataclass_options import off_option, option_name, options_of
from lora_quant.cli.outcome import FINE
from lora_quant.cli.reported import reported
from lora_quant.cli.typed_paths import require_typed
from lora_quant.config.options import BuildOptions
from lora_quant.errors import ConfigError, did_you_mean


@click.command("build", short_help="Compile a lora_config.yaml into a pack.")
@click.argument("config", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of the pack."
)
@options_of(BuildOptions)
@click.option("--json", "as_json", is_flag=True, help="Print a machine-readable report.")
def build_command(config: Path, output: Path, as_json: bool, **options: Any) -> int:
    """Compile CONFIG, a lora_config.yaml, into a folder of weight packs and one graph.

    The base graph's weights are copied, or shared with --beside-base, and never loaded.
    """
    with reported("build", as_json=as_json):
        chosen = _chosen(options)
        from lora_quant.api import build
        from lora_quant.cli.progress import shown_progress
        from lora_quant.cli.render import show_build

        require_typed(config, "configuration")
        require_typed(Path(chosen.map_from) if chosen.map_from else None, "float graph")
        with shown_progress(enabled=not as_json) as progress:
            result = build(config, output, chosen, progress=progress)
    show_build(result, as_json=as_json)
    return FINE


def _chosen(options: Mapping[str, Any]) -> BuildOptions:
    """The options as an object; a UsageError names the option that cannot be taken."""
    try:
        chosen = replace(BuildOptions(), **options)
    except ConfigError as error:
        text = error.message if error.hint is None else f"{error.message}; {error.hint}"
        raise click.UsageError(_with_options(text)) from error
    from lora_quant import plugins

    known = plugins.registered(plugins.TARGETS)
    for name in chosen.targets:
        if name not in known:
            raise click.UsageError(
                f"--target is {name!r}, and there is no such target; {did_you_mean(name, known)}"
            )
    return chosen


def _with_options(text: str) -> str:
    """Fields of BuildOptions by the names that a person types."""
    names = "|".join(field.name for field in fields(BuildOptions))
    on = "|".join(field.name for field in fields(BuildOptions) if field.default is True)
    text = re.sub(rf"\bwithout ({on})\b", lambda found: f"with {off_option(found[1])}", text)
    return re.sub(rf"\b({names})\b", lambda found: option_name(found[0]), text)
