"""Compiling and running graphs for the HTP in processes of their own, with a limit on their time.

The vendor's compiler aborts, runs on without end or prints to standard output on some graphs, and
its state lasts as long as the process: a child keeps all of that away from the caller.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from lora_quant.engines.onnxruntime import Array, Arrays
from lora_quant.engines.qnn import DEFAULT_ARCH
from lora_quant.errors import VerificationError, Where

DEFAULT_SECONDS = 600.0
_LINES = 3
_WORK = {
    "compile_context": "compiling the graph for the HTP",
    "run_on_htp": "running the graph on the HTP",
}


def compile_context(
    model: Path,
    output: Path,
    *,
    htp_arch: str = DEFAULT_ARCH,
    seconds: float = DEFAULT_SECONDS,
) -> tuple[Path, ...]:
    """Compile `model` for the HTP into `output`, an EPContext graph with a binary beside it.

    Returns the files that appeared, `output` first. Raises VerificationError if the compiler
    refuses the graph, aborts, or takes longer than `seconds`; nothing is left behind then.
    """
    with tempfile.TemporaryDirectory(prefix=f".{output.stem}.", dir=output.parent) as name:
        compiled = Path(name) / output.name
        _child("compile_context", model, [str(model), str(compiled), htp_arch], seconds)
        if not compiled.is_file():
            raise VerificationError(
                "the compiler for the HTP wrote nothing",
                where=Where(file=model),
                hint="leave out the context; the graph itself is compiled where it is opened",
            )
        made = [compiled, *sorted(path for path in Path(name).iterdir() if path != compiled)]
        return tuple(path.replace(output.parent / path.name) for path in made)


def run_on_htp(
    model: Path,
    feeds: Iterable[Arrays],
    *,
    htp_arch: str = DEFAULT_ARCH,
    seconds: float = DEFAULT_SECONDS,
) -> list[dict[str, Array]]:
    """All outputs of `model` on the HTP, for each set of feeds; the graph is compiled once.

    Feeds are taken one set at a time. Raises VerificationError as `compile_context` does.
    """
    with tempfile.TemporaryDirectory(prefix="lora-quant-htp-") as name:
        folder = Path(name)
        count = 0
        for one in feeds:
            arrays = {key: np.asarray(value, order="C") for key, value in one.items()}
            save_file(arrays, folder / f"{count}.safetensors")
            count += 1
        _child("run_on_htp", model, [str(model), str(folder), htp_arch], seconds)
        return [load_file(folder / f"{number}.out.safetensors") for number in range(count)]


def _child(program: str, model: Path, arguments: list[str], seconds: float) -> None:
    """Run one of the programs of this room; VerificationError unless it ends well."""
    where = Where(file=model)
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-m", f"lora_quant.engines.{program}", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # What lies in the current folder is not to be imported.
            env={**os.environ, "PYTHONSAFEPATH": "1"},
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise VerificationError(
                f"the compiler for the HTP did not finish the graph within {seconds:g} s",
                where=where,
                hint="raise the limit, or make the graph smaller",
            ) from error
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if code == 0:
            return
        output.seek(0)
        lines = [line for line in output.read().decode(errors="replace").splitlines() if line]
    how = f"stopped by {signal.Signals(-code).name}" if code < 0 else "refused"
    said = " | ".join(lines[-_LINES:]) or "nothing was said"
    raise VerificationError(f"{_WORK[program]} was {how}: {said}", where=where)
