"""Verifying a pack: the compiled graph against the base graph with what adapters change put in.

A use case passes if, for every output,

    max|y - y_ref|  <=  tolerance * max|y_ref - y_base|  +  floor

The first term scales with what the adapter does, so that a wrong strength cannot hide behind a
large base. The second is rounding: both sides evaluate the same sums in another order. It is
measured on the reference, see lora_quant.runtime.rounding. Outputs of integers and booleans have to
be equal.

gates             on and off for whole sequences, and on for every second token: the application
                  chooses the values, and what it adds is linear in them
soft prompts      the pack's is fed to the compiled graph, the adapter's to the reference; y_base is
                  with a prompt of zeros
approximations    see lora_quant.runtime.approximation
merged packs      the merged graph for its one use case; there is nothing to switch off
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from lora_quant.config.manifest_records import PromptRecord, UseCaseRecord
from lora_quant.errors import VerificationError, Where
from lora_quant.passes.compilation import Progress, no_progress
from lora_quant.runtime.approximation import Approximations, LayerError
from lora_quant.runtime.base_view import Array, BaseView
from lora_quant.runtime.comparison import OutputError, compare, equal
from lora_quant.runtime.compiled import CompiledGraph
from lora_quant.runtime.engine import Engine
from lora_quant.runtime.feeds import Feeds, check_types, first_of
from lora_quant.runtime.inputs import check_inputs, read_inputs
from lora_quant.runtime.pack import Pack, open_pack
from lora_quant.runtime.parameter_places import find_places
from lora_quant.runtime.prompts import read_prompt, with_prompt
from lora_quant.runtime.reference import BaseChange, Reference
from lora_quant.runtime.rounding import rounding_floors
from lora_quant.runtime.sites import find_sites
from lora_quant.runtime.updates import Updates
from lora_quant.runtime.verification import Unverified, Verification

DEFAULT_TOLERANCE = 1e-4


def verify(
    folder: Path,
    *,
    base: Path | None = None,
    sources: Path | None = None,
    inputs: Path | None = None,
    seed: int = 0,
    tolerance: float = DEFAULT_TOLERANCE,
    progress: Progress = no_progress,
) -> Verification:
    """Run every use case of the pack in `folder` on the CPU and compare.

    `base` says where the base graph is now, `sources` where the folder of the configuration is,
    with everything beside it. `inputs` names a .npz or .safetensors file; without it inputs are
    random. Raises VerificationError if something cannot be run or has changed.
    """
    pack = open_pack(folder, sources)
    base_proto, base_path = pack.base_graph(base)
    check_types(pack.manifest, base_proto, base_path)
    given = None
    if inputs is not None:
        given = read_inputs(inputs)
        check_inputs(given, base_proto, inputs)
    feeds = Feeds(base_proto, given, seed)
    steps = len(pack.manifest.use_cases) + 2
    progress("base graph", 0, steps)
    run = _Run(pack, base_proto, base_path, feeds, tolerance)
    progress("compiled graph", 1, steps)
    run.open_compiled()
    for number, use_case in enumerate(pack.manifest.use_cases):
        progress(f"use case {use_case.name}", number + 2, steps)
        run.compare(use_case)
    return run.result()


@dataclass(frozen=True, eq=False)
class _Case:
    """One way to run a use case: how its gates are set, and what is said of it."""

    gates: str
    gate: NDArray[np.float32] | None
    on: bool = True


class _Run:
    """The base, the reference and the compiled graph of one pack, and what was found."""

    def __init__(
        self, pack: Pack, proto: ModelProto, path: Path, feeds: Feeds, tolerance: float
    ) -> None:
        self._pack = pack
        self._manifest = pack.manifest
        self._proto, self._path = proto, path
        self._feeds = feeds
        self._tolerance = tolerance
        self._adapters = {a.name: pack.adapter(a.name) for a in self._manifest.adapters}
        self._strengths = pack.strengths()
        mapping = pack.mapping()
        sites = find_sites(self._manifest, self._adapters, path, mapping)
        view = BaseView(proto, path)
        places, self._reasons = find_places(view, self._adapters)
        self._updates = Updates(view, self._adapters, sites, places, mapping)
        self._gains = {name: view.linear(name).gain for name in self._updates.nodes}
        self._plain = self._run_base(proto, path)
        self._reference = Reference(
            view, self._updates.nodes, self._updates.constants, self._updates.paths()
        )
        self._base_exact: bool | None = None
        self._errors: list[OutputError] = []
        self._layers: list[LayerError] = []
        self._without_effect: list[str] = []
        self._unverified: list[Unverified] = []

    def open_compiled(self) -> None:
        """Open the compiled graph, and hold it against the base with every adapter off."""
        self._compiled = CompiledGraph(*self._pack.graph("qairt"), self._manifest)
        if self._manifest.merged is None:
            got = self._compiled.run(self._feeds.of(None), None, None)
            self._base_exact = equal(got, self._plain[None])

    def compare(self, use_case: UseCaseRecord) -> None:
        """Run one use case on both sides, in every setting of its gates."""
        strengths = self._strengths_of(use_case)
        for name in strengths:
            if name in self._reasons:
                reason = f"adapter {name!r}: {self._reasons[name]}"
                self._unverified.append(Unverified(use_case.name, reason))
                return
        weights = None
        if self._manifest.merged is None:
            weights = self._pack.file("qairt", "weights", use_case.name)
        feeds = theirs = self._feeds.of(use_case.prompt)
        if use_case.prompt is not None:
            feeds, theirs = self._with_prompts(use_case, use_case.prompt, feeds)
        plain = self._plain[_key(use_case.prompt)]
        for case in self._cases(use_case, feeds):
            got = self._compiled.run(feeds, use_case, weights, case.gate)
            wanted, exact, floors = self._wanted(use_case, strengths, weights, theirs, case)
            compared = compare(
                use_case.name,
                got,
                wanted,
                plain,
                self._tolerance,
                floors,
                gates=case.gates,
                without_loss=exact,
            )
            self._errors += compared
            if use_case.slots and case.on and all(e.effect == 0 for e in compared):
                self._without_effect.append(use_case.name)

    def result(self) -> Verification:
        """Everything that was found."""
        return Verification(
            errors=tuple(self._errors),
            base_exact=self._base_exact,
            tolerance=self._tolerance,
            without_effect=tuple(dict.fromkeys(self._without_effect)),
            layers=tuple(self._layers),
            prompts=tuple(u.name for u in self._manifest.use_cases if u.prompt is not None),
            unverified=tuple(self._unverified),
        )

    def _run_base(self, proto: ModelProto, path: Path) -> dict[str | None, dict[str, Array]]:
        """Outputs of the base as it is, for each prompt with zeros in its place."""
        engine = Engine(proto.SerializeToString(), path.parent, path)
        prompts = {_key(u.prompt): u.prompt for u in self._manifest.use_cases}
        found = {}
        for key, prompt in {None: None, **prompts}.items():
            feeds = self._feeds.of(prompt)
            if prompt is not None:
                feeds = with_prompt(feeds, prompt, np.zeros(prompt.shape, np.float32))
            try:
                found[key] = engine.run(feeds)
            except VerificationError as error:
                guessed = self._feeds.guessed
                if not guessed:
                    raise
                raise VerificationError(
                    error.message,
                    where=error.where,
                    hint="give inputs with --inputs FILE: the graph does not tell the lengths of "
                    f"{first_of(guessed)}; each was taken to be 1",
                ) from error
        return found

    def _strengths_of(self, use_case: UseCaseRecord) -> Mapping[str, float]:
        """Adapter -> strength, in the order in which adapters act."""
        wanted = self._strengths.get(use_case.name, {})
        if set(wanted) != {slot.adapter for slot in use_case.slots}:
            raise VerificationError(
                f"manifest and configuration disagree on the adapters of use case "
                f"{use_case.name!r}",
                where=Where(use_case=use_case.name),
                hint="build the pack again",
            )
        return wanted

    def _with_prompts(
        self, use_case: UseCaseRecord, prompt: PromptRecord, feeds: Mapping[str, Array]
    ) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
        """Inputs with the pack's prompt, and with that of the adapter's own files."""
        path = self._pack.file("qairt", "prompt", use_case.name)
        own = self._adapters[prompt.adapter].prompt()
        if own.shape != prompt.shape:
            raise VerificationError(
                f"the manifest has a soft prompt of shape {list(prompt.shape)}, the adapter one of "
                f"{list(own.shape)}",
                where=Where(use_case=use_case.name, adapter=prompt.adapter),
                hint="build the pack again",
            )
        packed = read_prompt(path, prompt)
        return with_prompt(feeds, prompt, packed), with_prompt(feeds, prompt, own)

    def _cases(self, use_case: UseCaseRecord, feeds: Mapping[str, Array]) -> Iterator[_Case]:
        alpha = self._manifest.alpha
        gated = any(
            shape.gated
            for slot in use_case.slots
            for shape in self._adapters[slot.adapter].shapes.values()
        )
        if alpha is None or alpha.gate is None or not gated:
            yield _Case("", None)
            return
        yield _Case("on", np.ones((1, 1), np.float32))
        yield _Case("off", np.zeros((1, 1), np.float32), on=False)
        batch, tokens = self._token_counts(feeds)
        every_second = np.arange(tokens, dtype=np.float32) % 2
        yield _Case("every second token", np.tile(every_second, (batch, 1)))

    def _token_counts(self, feeds: Mapping[str, Array]) -> tuple[int, int]:
        """Sizes of batch and tokens where the base graph reaches the first gated layer."""
        spec = next(one for one in self._updates.paths() if not one.experts)
        x = self._updates.input_name(spec.node)
        if x in feeds:
            shape = feeds[x].shape
        else:
            proto = ModelProto()
            proto.CopyFrom(self._proto)
            proto.graph.output.add(name=x)
            engine = Engine(proto.SerializeToString(), self._path.parent, self._path)
            shape = engine.run(feeds)[x].shape
        return int(shape[0]), int(shape[1])

    def _wanted(
        self,
        use_case: UseCaseRecord,
        strengths: Mapping[str, float],
        weights: Path | None,
        feeds: Mapping[str, Array],
        case: _Case,
    ) -> tuple[dict[str, Array], dict[str, Array] | None, dict[str, float]]:
        """Outputs of the reference, those with exact updates if any is approximated, and floors."""
        per_token = case.gate if case.gate is not None and case.gate.size > 1 else None

        def changed(substitute: Approximations | None) -> BaseChange:
            return self._updates.change(
                strengths,
                gate=per_token,
                gates_on=case.on,
                substitute=None if substitute is None else substitute.substitute,
            )

        approximations = None
        if weights is not None and any(self._is_approximated(name) for name in strengths):
            approximations = Approximations(self._manifest, use_case, weights, self._gains)
        change = changed(approximations)
        wanted = self._reference.run(feeds, change)
        floors = rounding_floors(self._reference, feeds, change, wanted)
        if approximations is None:
            return wanted, None, floors
        if case.on and per_token is None:
            self._layers += approximations.errors
        return wanted, self._reference.run(feeds, changed(None)), floors

    def _is_approximated(self, adapter: str) -> bool:
        return any(shape.dense for shape in self._adapters[adapter].shapes.values())


def _key(prompt: PromptRecord | None) -> str | None:
    return None if prompt is None else prompt.adapter
