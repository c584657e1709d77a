"""The command `lora-quant`.

Exit codes: 0 fine, 1 findings or refused input, 2 wrong usage, 3 a defect of lora-quant,
130 interrupted.
"""

from __future__ import annotations

import io
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import click

from lora_quant import __version__
from lora_quant.cli.build_command import build_command
from lora_quant.cli.convert_config_command import convert_config_command
from lora_quant.cli.fill_in_command import fill_in_command
from lora_quant.cli.init_command import init_command
from lora_quant.cli.inspect_command import inspect_command
from lora_quant.cli.lower_command import lower_command
from lora_quant.cli.map_command import map_command
from lora_quant.cli.outcome import FINE, INTERRUPTED, OUR_BUG, REFUSED, USAGE
from lora_quant.cli.run_command import run_command
from lora_quant.cli.schema_command import schema_command
from lora_quant.cli.validate_command import validate_command
from lora_quant.cli.verify_command import verify_command
from lora_quant.errors import LoraQuantError, PackDefectError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="lora-quant")
def cli() -> None:
    """Compile LoRA adapters and their quantization encodings onto one ONNX graph.

    \b
    lora-quant init BASE ADAPTER...                 a lora_config.yaml to start from
    lora-quant convert-config FOLDER                one for what other tools left there
    lora-quant map MODEL -o attach_points.json      where adapters can attach
    lora-quant build lora_config.yaml -o OUT        graph, weight packs, encodings
    lora-quant verify OUT                           run it against the base plus dW
    lora-quant run OUT --use-case NAME              inputs through one use case
    lora-quant validate OUT                         check files against their schemas
    lora-quant schema NAME                          a JSON schema for editors and validators
    lora-quant fill-in OUT SECTIONS                 name the device compiler's sections for Genie
    lora-quant inspect ADAPTER                      what an adapter is, and what it needs
    lora-quant lower ADAPTER -o DIR                 an adapter of any kind as plain LoRA
    """


for _command in (
    init_command,
    convert_config_command,
    build_command,
    map_command,
    verify_command,
    run_command,
    validate_command,
    schema_command,
    fill_in_command,
    inspect_command,
    lower_command,
):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        # Names hold what a terminal's encoding does not; an escape says more than a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; nothing but KeyboardInterrupt is hidden."""
    try:
        with _interrupt_once():
            code = cli.main(args=arguments, prog_name="lora-quant", standalone_mode=False)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.UsageError as error:
        error.show()
        return USAGE
    except click.ClickException as error:
        error.show()
        return REFUSED
    except LoraQuantError as error:
        from lora_quant.cli.render import show_error

        show_error(error)
        return OUR_BUG if isinstance(error, PackDefectError) else REFUSED
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted: nothing was left behind", err=True)
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        click.echo(
            "\nThis is a defect of lora-quant, not of your input. Please report it with the lines "
            f"above and the command that you ran (lora-quant {__version__}).",
            err=True,
        )
        return OUR_BUG
    return code if isinstance(code, int) else FINE


@contextmanager
def _interrupt_once() -> Iterator[None]:
    """Let a termination request unwind like Ctrl-C, so that partial output is removed.

    A second request does not disturb the removal. The handlers of a program that calls `run` come
    back afterwards; outside of the main thread it keeps them.
    """
    numbers = [signal.SIGINT, signal.SIGTERM]
    hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
    if hang_up is not None and signal.getsignal(hang_up) is not signal.SIG_IGN:  # as nohup sets it
        numbers.append(hang_up)

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
