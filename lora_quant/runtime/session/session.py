"""Running a pack: one session of the engine, and use cases that switch from run to run.

    session = Session("OUT")
    session.run(inputs, "both")                                        a use case as compiled
    session.run(inputs, UseCaseRunConfig(name="both", adapters=[...])) other strengths
    session.activate("tone"); session.run(inputs)                      what later runs take
    session.run(inputs, BASE)                                          no adapter at all

Every run hands over all that its use case replaces, and the graph's own defaults stand for the
rest. So nothing of one run is left for the next, and threads may run different use cases at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from lora_quant.config.manifest import Manifest
from lora_quant.config.manifest_records import UseCaseRecord
from lora_quant.config.run_config import UseCaseRunConfig
from lora_quant.engines.onnxruntime import Array, Arrays, GraphValue, LoadedGraph
from lora_quant.errors import ConfigError, VerificationError, Where
from lora_quant.runtime.feeds.prompts import with_prompt
from lora_quant.runtime.session.choice import BASE, Base, Choice
from lora_quant.runtime.session.feeding import check_fed, check_outputs
from lora_quant.runtime.session.gates import Gate, gate_input, refuse_gate, token_gate
from lora_quant.runtime.session.graph import Ports, open_session_graph
from lora_quant.runtime.session.pack_files import Device, Integrity, open_session_pack
from lora_quant.runtime.session.strengths import strength_values, strengths_of
from lora_quant.runtime.session.use_case import LoadedUseCase, load_use_case


@dataclass(frozen=True, eq=False)
class _Active:
    """What a run feeds besides the application's inputs; it never changes."""

    use_case: LoadedUseCase | None
    values: Mapping[str, Any]


_OFF = _Active(None, {})


class Session:
    """A pack that runs. Safe to use from several threads; a context manager that closes it.

    target: `onnxruntime` or `qnn`; the first of them that the pack has if None. device: `cpu`, or
    `htp` for the qnn target on the HTP or its emulation. htp_arch: the architecture of the
    HTP, that which the pack was built for if None; for another the graph is compiled anew.
    integrity: `full` hashes every file of the target once, `quick` leaves out those above 16 MiB.
    threads: that compute one operator on the CPU; the engine's choice if None.
    """

    def __init__(
        self,
        pack: Path | str,
        *,
        target: str | None = None,
        device: Device = "cpu",
        integrity: Integrity = "full",
        threads: int | None = None,
        htp_arch: str | None = None,
    ) -> None:
        """Check the files and open the graph; no use case is loaded yet.

        Raises ConfigError if the pack holds nothing to run, or for an option that means nothing,
        InputMissingError or VerificationError if its files are not those that were built,
        VerificationError if the engine does not open the graph.
        """
        _check_options(device, threads, htp_arch)
        self._pack = open_session_pack(
            Path(pack), target=target, device=device, integrity=integrity
        )
        self._source = self._pack.require("graph")
        graph = open_session_graph(self._pack, device, threads, htp_arch)
        self._ports = Ports(self._pack, graph)
        self._graph: LoadedGraph | None = graph
        self._loaded: dict[str, LoadedUseCase] = {}
        self._loading = threading.Lock()
        self._active: _Active | None = None
        if self._pack.manifest.merged is not None:
            self.activate(self._pack.manifest.merged)

    @property
    def target(self) -> str:
        """The target that runs."""
        return self._pack.target.name

    @property
    def manifest(self) -> Manifest:
        """The manifest of the pack."""
        return self._pack.manifest

    @property
    def graph_file(self) -> Path:
        """The ONNX file of the graph that runs."""
        return self._source

    @property
    def rounds_activations(self) -> bool:
        """Whether activations of the branches may be on grids, which fit the compiled strengths."""
        inputs = self._pack.target.inputs
        if self.target == "qnn" or any(record.role == "activation" for record in inputs):
            return True
        # In this mode such grids are constants of the graph, beside codes of the weights.
        return self.manifest.mode == "none" and any("int" in record.dtype for record in inputs)

    @property
    def use_cases(self) -> tuple[str, ...]:
        """The names of the use cases."""
        return tuple(record.name for record in self._pack.manifest.use_cases)

    @property
    def active(self) -> str | Base | None:
        """What a run takes that names no use case; None if there is nothing yet."""
        active = self._active
        if active is None:
            return None
        return BASE if active.use_case is None else active.use_case.record.name

    @property
    def inputs(self) -> tuple[GraphValue, ...]:
        """The inputs that every run has to give; a gate is given apart."""
        return tuple(self._ports.required.values())

    @property
    def outputs(self) -> tuple[GraphValue, ...]:
        """The outputs of the graph."""
        return self._ports.outputs

    def run(
        self,
        inputs: Arrays,
        config: Choice | None = None,
        *,
        gate: Gate | None = None,
        outputs: Sequence[str] | None = None,
    ) -> dict[str, Array]:
        """Outputs by name, in the types of the graph; all of them unless some are named.

        A strength beyond the compiled one may leave the range of quantized activations (see
        `rounds_activations`), which then clip.

        config: what runs, None for what was activated last. Adapters that a UseCaseRunConfig does
        not name keep their compiled strength. gate: `[batch, tokens]` for use cases that act on
        some tokens only, see `gate`. A soft prompt replaces the first tokens of the inputs that it
        feeds, which are copied for that; inputs are never changed.

        Raises ConfigError if the use case or its strengths are refused, VerificationError if
        inputs do not fit the graph or the engine cannot run it.
        """
        active = self._active if config is None else self._resolve(config)
        graph = self._open_graph()
        if active is None:
            raise ConfigError(
                "no use case is chosen",
                where=Where(file=self._pack.folder),
                hint="name one in run, or activate one; session.base() chooses the base",
            )
        ports = self._ports
        fed = check_fed(inputs, ports.required, ports.optional, ports.reserved, self._source)
        if outputs:
            check_outputs(outputs, [value.name for value in ports.outputs], self._source)
        use_case = active.use_case
        if use_case is not None and use_case.prompt is not None and use_case.record.prompt:
            fed = with_prompt(fed, use_case.record.prompt, use_case.prompt)
        fed.update(self._gates(None if use_case is None else use_case.record, gate))
        return graph.run(fed, active.values, outputs or None)

    def strengths(self, config: UseCaseRunConfig | str) -> dict[str, float]:
        """Adapter -> strength of a run with `config`; ConfigError as for `run`."""
        if isinstance(config, str):
            return {slot.adapter: slot.alpha for slot in self._pack.use_case(config).slots}
        return self._strengths(self._pack.use_case(config.name), config)

    def activate(self, config: Choice) -> None:
        """Load a use case, and take it in runs of this session that name none.

        Runs that are under way keep what they began with. Raises as `run` does; what was active
        then stays so.
        """
        self._active = self._resolve(config)

    def base(self) -> None:
        """Take no adapter in runs that name no use case; ConfigError for a merged pack."""
        self.activate(BASE)

    def preload(self, *use_cases: str) -> None:
        """Read the files of some use cases, of all if none is named, so that no run has to."""
        for name in use_cases or self.use_cases:
            self._load(name)

    def gate(self, use_case: str, token_ids: Array) -> dict[str, Array]:
        """Gates `[batch, tokens]` of the gated adapters of a use case, by adapter.

        1 from the start of the last occurrence of the adapter's invocation tokens in a row of
        token_ids `[batch, tokens]` on, 0 before, and 0 in rows without it. Empty if nothing is
        gated. Raises ConfigError for an unknown use case, VerificationError for other token ids.
        """
        tokens = {a.name: a.invocation_tokens for a in self._pack.manifest.adapters}
        return {
            slot.adapter: token_gate(token_ids, tokens[slot.adapter])
            for slot in self._pack.use_case(use_case).slots
            if slot.gated
        }

    def close(self) -> None:
        """Let go of the graph and of all use cases; runs that are under way end as they would."""
        self._graph = None
        self._active = None
        with self._loading:
            self._loaded.clear()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open_graph(self) -> LoadedGraph:
        graph = self._graph
        if graph is None:
            raise VerificationError(
                "the session is closed",
                where=Where(file=self._pack.folder),
                hint="open a new one",
            )
        return graph

    def _resolve(self, config: Choice) -> _Active:
        if isinstance(config, Base):
            if self._pack.manifest.merged is not None:
                raise ConfigError(
                    f"the use case {self._pack.manifest.merged!r} was put into the weights of this "
                    "pack: there is no base to go back to",
                    where=Where(file=self._pack.folder),
                    hint="build without --merge to switch use cases",
                )
            return _OFF
        use_case = self._load(config if isinstance(config, str) else config.name)
        if isinstance(config, str):
            return _Active(use_case, use_case.values)
        strengths = self._strengths(use_case.record, config)
        alpha = self._pack.alpha
        if alpha is None:
            return _Active(use_case, use_case.values)
        value = self._open_graph().value_of(strength_values(alpha, use_case.record, strengths))
        return _Active(use_case, {**use_case.values, alpha.tensor: value})

    def _strengths(self, record: UseCaseRecord, config: UseCaseRunConfig) -> dict[str, float]:
        strengths = strengths_of(record, config)
        for slot in record.slots:
            asked = strengths[slot.adapter]
            if self._pack.alpha is None and asked != slot.alpha:
                raise ConfigError(
                    f"the strength of adapter {slot.adapter!r} cannot change at run time: got "
                    f"{asked:g}, expected {slot.alpha:g} as compiled, since the graph has no input "
                    "for strengths",
                    where=Where(use_case=record.name, adapter=slot.adapter),
                    hint="build the use case with the strength that you want",
                )
        return strengths

    def _load(self, name: str) -> LoadedUseCase:
        found = self._loaded.get(name)
        if found is None:
            graph = self._open_graph()
            with self._loading:  # threads that ask for one at a time read it once
                found = self._loaded.get(name)
                if found is None:
                    found = self._loaded[name] = load_use_case(self._pack, name, graph)
        return found

    def _gates(self, use_case: UseCaseRecord | None, gate: Gate | None) -> dict[str, Array]:
        alpha = self._pack.alpha
        if alpha is None or alpha.gate is None:
            if gate is not None:
                raise refuse_gate(use_case)
            return {}
        return {alpha.gate.tensor: gate_input(alpha, use_case, gate, self._ports.gate_sizes)}


def _check_options(device: Device, threads: int | None, htp_arch: str | None) -> None:
    if threads is not None and threads < 1:
        raise ConfigError(
            f"threads is {threads}, expected 1 or more", hint="leave it out for the engine's choice"
        )
    if htp_arch is not None and device == "cpu":
        raise ConfigError(
            f"the HTP architecture {htp_arch!r} is given for a run on the CPU",
            hint="leave it out, or give the device 'htp'",
        )
