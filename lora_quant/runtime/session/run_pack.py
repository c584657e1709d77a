"""One run of a pack: inputs from a file, or random ones, through one use case or the base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_quant.config.run_config import UseCaseRunConfig
from lora_quant.engines.onnxruntime import Array
from lora_quant.errors import PackError, VerificationError, Where, did_you_mean
from lora_quant.findings import Finding, Severity
from lora_quant.graph.files.model_file import load_model
from lora_quant.runtime.feeds.input_files import read_inputs
from lora_quant.runtime.feeds.use_case_feeds import Feeds
from lora_quant.runtime.session.array_files import check_output, write_arrays
from lora_quant.runtime.session.choice import BASE
from lora_quant.runtime.session.pack_files import Device
from lora_quant.runtime.session.session import Session


@dataclass(frozen=True)
class RunRequest:
    """What to run.

    config: the use case and its strengths, None for the base. inputs: a .npz or .safetensors file;
    None for random inputs from `seed`. outputs: their names, all if empty. gate_from: the input
    whose token ids tell where gates open. output: the file to write, replaced with `force` only.
    """

    pack: Path
    config: UseCaseRunConfig | None
    inputs: Path | None = None
    seed: int = 0
    outputs: Sequence[str] = ()
    gate_from: str | None = None
    output: Path | None = None
    force: bool = False
    target: str | None = None
    device: Device = "cpu"
    htp_arch: str | None = None


@dataclass(frozen=True, eq=False)
class RunResult:
    """What came out; `strengths` are those of the adapters, by name."""

    target: str
    strengths: Mapping[str, float]
    outputs: Mapping[str, Array]
    findings: tuple[Finding, ...] = ()


def run_pack(request: RunRequest) -> RunResult:
    """Run, and write the outputs if a file is named.

    Raises PackError if the file may not be written, before anything runs, and what Session raises.
    """
    if request.output is not None:
        _check_place(request, request.output)
        check_output(request.output, force=request.force)
    given = None if request.inputs is None else read_inputs(request.inputs)
    with Session(
        request.pack,
        target=request.target,
        device=request.device,
        htp_arch=request.htp_arch,
    ) as session:
        config = request.config
        strengths = {} if config is None else session.strengths(config)
        name = None if config is None else config.name
        inputs = _random(session, request.seed, name) if given is None else given
        gate = _gate(session, name, inputs, request.gate_from)
        findings = (*_ungated(request.gate_from, gate), *_clipped(session, config, strengths))
        outputs = session.run(
            inputs,
            BASE if config is None else config,
            gate=gate,
            outputs=list(request.outputs) or None,
        )
        target = session.target
    if request.output is not None:
        write_arrays(request.output, outputs, force=request.force)
    return RunResult(target, strengths, outputs, findings)


def _check_place(request: RunRequest, output: Path) -> None:
    """Raises PackError for a file among what the run reads, which --force would replace."""
    place = output.resolve()
    if place.is_relative_to(request.pack.resolve()):
        raise PackError(
            "the output file lies inside the pack, which holds only what its build wrote",
            where=Where(file=output),
            hint="choose a file outside of it",
        )
    if request.inputs is not None and place == request.inputs.resolve():
        raise PackError(
            "the output file is the one with the inputs",
            where=Where(file=output),
            hint="choose another file",
        )


def _random(session: Session, seed: int, use_case: str | None) -> dict[str, Array]:
    """Random inputs of the graph, with room for the soft prompt of the use case."""
    record = next((u for u in session.manifest.use_cases if u.name == use_case), None)
    proto = load_model(session.graph_file).proto
    arrays = Feeds(proto, None, seed).of(None if record is None else record.prompt)
    return {value.name: arrays[value.name] for value in session.inputs}


def _clipped(
    session: Session, config: UseCaseRunConfig | None, strengths: Mapping[str, float]
) -> Iterator[Finding]:
    """A note for each strength that quantized activations may have no room for."""
    if config is None or not session.rounds_activations:
        return
    (record,) = (u for u in session.manifest.use_cases if u.name == config.name)
    for slot in record.slots:
        asked = strengths[slot.adapter]
        if not min(slot.alpha, 0.0) <= asked <= max(slot.alpha, 0.0):
            yield Finding(
                "run/beyond-compiled",
                Severity.NOTE,
                f"the strength {asked:g} of adapter {slot.adapter!r} lies beyond the compiled "
                f"{slot.alpha:g}: quantized activations that were calibrated for that one may clip",
                Where(use_case=record.name, adapter=slot.adapter),
                hint="calibrate and build the use case with the largest strength that you run",
            )


def _gate(
    session: Session, use_case: str | None, inputs: Mapping[str, Array], source: str | None
) -> Mapping[str, Array] | None:
    if source is None:
        return None
    if source not in inputs:
        raise VerificationError(
            f"there is no input {source!r} to take gates from",
            where=Where(tensor=source),
            hint=did_you_mean(source, inputs),
        )
    return None if use_case is None else session.gate(use_case, inputs[source]) or None


def _ungated(source: str | None, gate: Mapping[str, Array] | None) -> Iterator[Finding]:
    if source is not None and gate is None:
        yield Finding(
            "run/no-gate",
            Severity.NOTE,
            f"nothing that ran waits for invocation tokens: the gate from {source!r} changes "
            "nothing",
        )
