"""What every use case of a pack has to give: computed once, and held against every target.

gates             on and off for whole sequences, and on for every second token: the application
                  chooses the values, and what it adds is linear in them
soft prompts      the adapter's own is fed to the reference; the base is run with one of zeros
approximations    see lora_quant.runtime.verify.approximation
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from lora_quant.adapters.adapter import Adapter
from lora_quant.config.manifest_records import PromptRecord, UseCaseRecord
from lora_quant.engines.onnxruntime import Array, open_graph
from lora_quant.errors import VerificationError, Where
from lora_quant.runtime.feeds.prompts import with_prompt
from lora_quant.runtime.feeds.use_case_feeds import Feeds, first_of
from lora_quant.runtime.reference.base_view import BaseView
from lora_quant.runtime.reference.engine import Engine
from lora_quant.runtime.reference.parameter_places import find_places
from lora_quant.runtime.reference.reference import BaseChange, Reference
from lora_quant.runtime.reference.sites import find_sites
from lora_quant.runtime.reference.updates import Updates
from lora_quant.runtime.verify.adapter_factors import AdapterFactors
from lora_quant.runtime.verify.approximation import Approximations, LayerError
from lora_quant.runtime.verify.case import Case
from lora_quant.runtime.verify.comparison import largest_difference
from lora_quant.runtime.verify.factors import FactorSource, WeightsFile
from lora_quant.runtime.verify.pack import Pack
from lora_quant.runtime.verify.rounding import rounding_floors
from lora_quant.runtime.verify.roundings import has_quantized_weights

_QAIRT, _ONNXRUNTIME = "qairt", "onnxruntime"
"""The targets whose files approximations are read from."""


@dataclass(frozen=True, eq=False)
class _Gates:
    """One way to set the gates of a use case, and what is said of it."""

    text: str
    values: NDArray[np.float32] | None
    on: bool = True


class Expectations:
    """The base and the reference of one pack; `layers` are the approximated modules met so far."""

    def __init__(
        self,
        pack: Pack,
        adapters: Mapping[str, Adapter],
        proto: ModelProto,
        path: Path,
        feeds: Feeds,
        *,
        floors: bool,
    ) -> None:
        """`proto` is the base graph at `path`; `floors` says whether rounding is to be measured.

        `adapters` are those of the manifest, by name.
        """
        self._pack = pack
        self._manifest = pack.manifest
        self._proto, self._path = proto, path
        self._feeds = feeds
        self._floors = floors
        self._adapters = adapters
        self._strengths = pack.strengths()
        mapping = pack.mapping()
        sites = find_sites(self._manifest, self._adapters, path, mapping)
        view = BaseView(proto, path)
        places, self._reasons = find_places(view, self._adapters)
        self._updates = Updates(view, self._adapters, sites, places, mapping)
        self._gains = {name: view.linear(name).gain for name in self._updates.nodes}
        self._prompts = {_key(u.prompt): u.prompt for u in self._manifest.use_cases}
        self._plain = self._run_base()
        self._fused = self._run_fused() if floors else {}
        self._reference = Reference(
            view, self._updates.nodes, self._updates.constants, self._updates.paths()
        )
        self.layers: list[LayerError] = []

    @property
    def feeds(self) -> Mapping[str, Array]:
        """Inputs of the base graph, without room for a prompt."""
        return self._feeds.of(None)

    @property
    def plain(self) -> Mapping[str, Array]:
        """Outputs of the base graph for `feeds`."""
        return self._plain[None]

    def reason_against(self, use_case: UseCaseRecord) -> str | None:
        """Why the reference cannot be computed, None if it can."""
        for name in self._strengths_of(use_case):
            if name in self._reasons:
                return f"adapter {name!r}: {self._reasons[name]}"
            if self._is_approximated(name) and not self._has_factors():
                return (
                    f"adapter {name!r} is approximated, and no files of the pack have its low rank "
                    f"in floats: build the pack for the target {_QAIRT!r} as well"
                )
        return None

    def cases(self, use_case: UseCaseRecord) -> Iterator[Case]:
        """The use case in every setting of its gates."""
        strengths = self._strengths_of(use_case)
        prompt = use_case.prompt
        feeds = blank = theirs = self._feeds.of(prompt)
        if prompt is not None:
            blank = _blank(feeds, prompt)
            theirs = with_prompt(feeds, prompt, self._own_prompt(use_case, prompt))
        for gates in self._settings(use_case, feeds):
            wanted, exact, floors = self._wanted(use_case, strengths, theirs, gates)
            yield Case(
                use_case=use_case,
                feeds=feeds,
                blank=blank,
                gates=gates.text,
                gate=gates.values,
                on=gates.on,
                plain=self._plain[_key(prompt)],
                wanted=wanted,
                floors=floors,
                exact=exact,
            )

    def _run_base(self) -> dict[str | None, dict[str, Array]]:
        """Outputs of the base as it is, for each prompt with zeros in its place."""
        engine = Engine(self._proto.SerializeToString(), self._path.parent, self._path)
        try:
            return {key: engine.run(feeds) for key, feeds in self._blank_feeds()}
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

    def _run_fused(self) -> dict[str | None, dict[str, float]]:
        """How far fusions move each output of the base, for each prompt; whole numbers have 0."""
        proto, path = self._proto.SerializeToString(), self._path
        graph = open_graph(proto, source=path, data_folder=path.parent)
        found = {}
        for key, feeds in self._blank_feeds():
            plain = self._plain[key]
            found[key] = {
                name: largest_difference(y, plain[name]) if y.dtype.kind == "f" else 0.0
                for name, y in graph.run(feeds).items()
            }
        return found

    def _blank_feeds(self) -> Iterator[tuple[str | None, Mapping[str, Array]]]:
        """Inputs of the base without a prompt, and with zeros in the place of each."""
        for key, prompt in {None: None, **self._prompts}.items():
            feeds = self._feeds.of(prompt)
            yield key, feeds if prompt is None else _blank(feeds, prompt)

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

    def _own_prompt(self, use_case: UseCaseRecord, prompt: PromptRecord) -> Array:
        """The prompt of the adapter's own files."""
        own = self._adapters[prompt.adapter].prompt()
        if own.shape != prompt.shape:
            raise VerificationError(
                f"the manifest has a soft prompt of shape {list(prompt.shape)}, the adapter one of "
                f"{list(own.shape)}",
                where=Where(use_case=use_case.name, adapter=prompt.adapter),
                hint="build the pack again",
            )
        return own

    def _settings(self, use_case: UseCaseRecord, feeds: Mapping[str, Array]) -> Iterator[_Gates]:
        alpha = self._manifest.alpha
        gated = any(
            shape.gated
            for slot in use_case.slots
            for shape in self._adapters[slot.adapter].shapes.values()
        )
        if alpha is None or alpha.gate is None or not gated:
            yield _Gates("", None)
            return
        yield _Gates("on", np.ones((1, 1), np.float32))
        yield _Gates("off", np.zeros((1, 1), np.float32), on=False)
        batch, tokens = self._token_counts(feeds)
        every_second = np.arange(tokens, dtype=np.float32) % 2
        yield _Gates("every second token", np.tile(every_second, (batch, 1)))

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
        feeds: Mapping[str, Array],
        gates: _Gates,
    ) -> tuple[dict[str, Array], dict[str, Array] | None, dict[str, float]]:
        """Outputs of the reference, those with exact updates if any is approximated, and floors."""
        per_token = gates.values if gates.values is not None and gates.values.size > 1 else None

        def changed(substitute: Approximations | None) -> BaseChange:
            return self._updates.change(
                strengths,
                gate=per_token,
                gates_on=gates.on,
                substitute=None if substitute is None else substitute.substitute,
            )

        approximations = None
        if self._manifest.merged is None and any(map(self._is_approximated, strengths)):
            source = self._factors(use_case)
            approximations = Approximations(self._manifest, use_case, source, self._gains)
        change = changed(approximations)
        wanted = self._reference.run(feeds, change)
        floors = {}
        if self._floors:
            fused = self._fused[_key(use_case.prompt)]
            floors = rounding_floors(self._reference, feeds, change, wanted, fused)
        if approximations is None:
            return wanted, None, floors
        if gates.on and per_token is None:
            self.layers += approximations.errors
        return wanted, self._reference.run(feeds, changed(None)), floors

    def _is_approximated(self, adapter: str) -> bool:
        return any(shape.dense for shape in self._adapters[adapter].shapes.values())

    def _has_factors(self) -> bool:
        """Whether approximations can be read; a merged graph has none."""
        if self._manifest.merged is not None or self._is_built(_QAIRT):
            return True
        if not self._is_built(_ONNXRUNTIME):
            return False
        return not has_quantized_weights(self._pack.target(_ONNXRUNTIME).inputs)

    def _factors(self, use_case: UseCaseRecord) -> FactorSource:
        """The files of the use case that have its factors."""
        if self._is_built(_QAIRT):
            weights = self._pack.file(_QAIRT, "weights", use_case.name)
            return WeightsFile(self._manifest, use_case, weights)
        proto, _ = self._pack.graph(_ONNXRUNTIME)
        adapter = self._pack.file(_ONNXRUNTIME, "adapter", use_case.name)
        target = self._pack.target(_ONNXRUNTIME)
        return AdapterFactors(proto.graph, target, use_case, adapter)

    def _is_built(self, target: str) -> bool:
        return any(one.name == target for one in self._manifest.targets)


def _blank(feeds: Mapping[str, Array], prompt: PromptRecord) -> dict[str, Array]:
    return with_prompt(feeds, prompt, np.zeros(prompt.shape, np.float32))


def _key(prompt: PromptRecord | None) -> str | None:
    return None if prompt is None else prompt.adapter
