"""With --json, a command that is stopped prints a report as well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from lora_quant.errors import LoraQuantError
from lora_quant.findings import Finding, Severity


@contextmanager
def reported(command: str, *, as_json: bool) -> Iterator[None]:
    """Print what stops the command as the one finding of a report, and let it go on to `main`.

    Wrong usage gets no report: most of it is found before the command, and its --json, is known.
    """
    try:
        yield
    except click.ClickException:
        raise
    except BaseException as error:
        if as_json:
            from lora_quant.cli.render import show_report

            show_report(command, (_finding_of(error),), ok=False)
        raise


def _finding_of(error: BaseException) -> Finding:
    """The finding `error/<code>`; error/interrupted and error/internal are not of our tree."""
    if isinstance(error, LoraQuantError):
        return Finding(
            f"error/{error.code}", Severity.ERROR, error.message, error.where, error.hint
        )
    if isinstance(error, KeyboardInterrupt):
        return Finding("error/interrupted", Severity.ERROR, "interrupted: nothing was left behind")
    return Finding(
        "error/internal",
        Severity.ERROR,
        f"{type(error).__name__}: {error}",
        hint="this is a defect of lora-quant, not of the input: please report it",
    )
