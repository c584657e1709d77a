"""Verifying a pack: everything that it has for devices, against what its adapters are.

The reference of a use case is the base graph with what the adapters change put into its weights
(lora_quant.runtime.reference), in floats. It is computed once, and held against every target:
qairt.py, onnxruntime.py and qnn.py. Use cases that brought a final graph of their own are held
against that graph (own_graphs.py); those that were exported with their branches are run as they
were, and held against the reference as well (exported_graphs.py). How far an output may be from it:
judge.py. Targets of other packages are named as not verified, which is no failure; a pack of which
nothing can be verified is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lora_quant.engines.qnn import chosen_arch
from lora_quant.errors import VerificationError, Where
from lora_quant.graph.files.model_file import load_model
from lora_quant.passes.compilation import Progress, no_progress
from lora_quant.runtime.feeds.input_files import read_inputs
from lora_quant.runtime.feeds.inputs import check_inputs
from lora_quant.runtime.feeds.use_case_feeds import Feeds, check_types
from lora_quant.runtime.verify.expectation import Expectations
from lora_quant.runtime.verify.exported_adapters import (
    exported_use_cases,
    graphs_of_use_cases,
    open_adapters,
)
from lora_quant.runtime.verify.exported_graphs import ExportedGraphsVerifier
from lora_quant.runtime.verify.onnxruntime import OnnxruntimeVerifier
from lora_quant.runtime.verify.own_graphs import own_graphs, switched_off, with_same_bits
from lora_quant.runtime.verify.pack import Pack, open_pack
from lora_quant.runtime.verify.qairt import QairtVerifier
from lora_quant.runtime.verify.qnn import QnnVerifier
from lora_quant.runtime.verify.settings import DEFAULT_TOLERANCE, Settings
from lora_quant.runtime.verify.static_inputs import check_sizes, with_fixed_sizes
from lora_quant.runtime.verify.target_verifier import TargetVerifier
from lora_quant.runtime.verify.verification import Unverified, Verification

VERIFIERS: Mapping[str, Callable[[Pack, Settings], TargetVerifier]] = {
    "qairt": QairtVerifier,
    "onnxruntime": OnnxruntimeVerifier,
    "qnn": QnnVerifier,
}
_STATIC = "qnn"
_NOT_RUN = (
    "the graphs that use cases were exported as were not run: the pack does not tell the "
    "configuration that it was built from"
)


def verify(
    folder: Path,
    *,
    base: Path | None = None,
    sources: Path | None = None,
    inputs: Path | None = None,
    seed: int = 0,
    tolerance: float = DEFAULT_TOLERANCE,
    min_sqnr: float | None = None,
    max_steps: float | None = None,
    htp_arch: str | None = None,
    targets: Sequence[str] = (),
    progress: Progress = no_progress,
) -> Verification:
    """Run every use case of the pack in `folder` for every target that it was built for.

    `base` says where the base graph is now, `sources` where the folder of the configuration is,
    with everything beside it. `inputs` names a .npz or .safetensors file; without it inputs are
    random. `targets` are those to verify, all if empty. `htp_arch` is that which the pack was built
    for if None. For the rest see settings.py. Raises VerificationError if something cannot be run
    or has changed, or if there is nothing to verify; ConfigError for a target that the pack does
    not have, and an architecture that its graph cannot run on.
    """
    pack = open_pack(folder, sources)
    manifest = pack.manifest
    chosen, notes = _choose(pack, targets)
    built = pack.target(_STATIC).htp_arch if _STATIC in chosen else None
    settings = Settings(tolerance, min_sqnr, max_steps, chosen_arch(htp_arch, built))
    base_proto, base_path = pack.base_graph(base)
    own = own_graphs(pack, base_path)
    if own is not None:
        pack, base_proto = own.others(), switched_off(base_proto, manifest)
    check_types(manifest, base_proto, base_path)
    example = base_proto
    if _STATIC in chosen:
        static = load_model(pack.file(_STATIC, "graph")).proto
        example = with_fixed_sizes(base_proto, static)
    given = None
    if inputs is not None:
        given = read_inputs(inputs)
        check_inputs(given, base_proto, inputs)
        if _STATIC in chosen:
            check_sizes(given, example, inputs)
    steps = len(manifest.use_cases) + 2
    progress("compiled graphs", 0, steps)
    verifiers = [VERIFIERS[name](pack, settings) for name in chosen]
    progress("base graph", 1, steps)
    exported = exported_use_cases(pack, base_path)
    adapters = open_adapters(pack, exported)
    every: list[TargetVerifier] = [*verifiers]
    if exported.use_cases:
        strengths = pack.strengths()
        every.append(ExportedGraphsVerifier(exported, adapters, strengths, base_proto, settings))
    elif graphs_of_use_cases(pack):
        notes = (*notes, _NOT_RUN)
    floors = not all(verifier.quantized for verifier in every)
    all_feeds = Feeds(example, given, seed)
    expected = Expectations(pack, adapters, base_proto, base_path, all_feeds, floors=floors)
    for verifier in verifiers:
        verifier.check_base(expected.feeds, expected.plain)
    unverified, without_effect = [], []
    for number, use_case in enumerate(pack.manifest.use_cases):
        progress(f"use case {use_case.name}", number + 2, steps)
        reason = expected.reason_against(use_case)
        if reason is not None:
            unverified.append(Unverified(use_case.name, reason))
            continue
        for case in expected.cases(use_case):
            for verifier in every:
                verifier.check(case)
            if use_case.slots and case.on and not case.has_effect:
                without_effect.append(use_case.name)
    results = tuple(verifier.result() for verifier in verifiers)
    if own is not None:
        same, idle = own.check(expected.feeds)
        results = with_same_bits(results, same)
        without_effect += idle
    return Verification(
        targets=results,
        settings=settings,
        own_graphs=every[-1].result() if exported.use_cases else None,
        without_effect=tuple(dict.fromkeys(without_effect)),
        layers=tuple(expected.layers),
        prompts=tuple(u.name for u in manifest.use_cases if u.prompt is not None),
        unverified=tuple(unverified),
        notes=notes,
    )


def _choose(pack: Pack, wanted: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The targets to verify, in the order of the pack, and what is said of the others."""
    built = [target.name for target in pack.manifest.targets]
    for name in wanted:
        pack.target(name)
    asked = [name for name in built if not wanted or name in wanted]
    chosen = tuple(name for name in asked if name in VERIFIERS)
    others = [repr(name) for name in asked if name not in VERIFIERS]
    if not chosen:
        raise VerificationError(
            f"nothing can be verified: got a pack for {', '.join(others) or 'no target'}, expected "
            f"one of {', '.join(VERIFIERS)} among its targets",
            where=Where(file=pack.folder),
            hint="build it with --target onnxruntime as well, and verify that",
        )
    return chosen, tuple(
        f"target {name} is of another package: its files are not verified" for name in others
    )
