"""A first `lora_config.yaml` for a base graph and adapters: every adapter alone, and given mixes.

base.onnx, tone=adapters/tone, legal=adapters/legal, both=tone:1,legal:0.6
    ->  use cases base, tone, legal, both
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from lora_quant import plugins
from lora_quant.adapters.adapter import Adapter, load_adapter
from lora_quant.config.attach_map import read_attach_map
from lora_quant.config.lora_config import AdapterConfig, LoraConfig, UseCaseInputConfig
from lora_quant.config.names import clashes, folder_name_problem
from lora_quant.configure.draft import Drafted
from lora_quant.configure.trial import Trial, try_build
from lora_quant.configure.written_config import Notes
from lora_quant.errors import ConfigError, LoraQuantError, Where, did_you_mean
from lora_quant.findings import Finding
from lora_quant.graph.base.base_graph import open_base
from lora_quant.passes.compilation import Progress, no_progress
from lora_quant.passes.fitting import Fitting, error_finding
from lora_quant.targets.files.peft_checkpoint import FILES

BASE = "base"
Mix = Mapping[str, float]


def draft_config(
    base: Path,
    adapters: Mapping[str, Path],
    *,
    mixes: Mapping[str, Mix] | None = None,
    encodings: Mapping[str, Path] | None = None,
    attach_points: Path | None = None,
    check: bool = True,
    progress: Progress = no_progress,
) -> Drafted:
    """The configuration for `base` and `adapters` (name -> folder or file).

    A use case without adapters, one for each adapter, and the `mixes` (use case -> adapter ->
    strength). `encodings` are those of use cases. What does not fit is a finding that is an error;
    with `check`, so is what would stop a build with default options. Raises ConfigError for names
    that clash or are not known, and what opening the base raises.
    """
    given = mixes or {}
    names = [_free_name(adapters), *adapters, *given]
    _check_names(names)
    _check_known("adapter", [name for mix in given.values() for name in mix], adapters)
    _check_known("use case", encodings or {}, names)
    graph = open_base(base)
    mapping = None if attach_points is None else read_attach_map(attach_points)
    fitting = Fitting(graph, mapping, attach_points)
    rules = plugins.Instances(plugins.LOWERING_RULES)
    opened: dict[str, Adapter] = {}
    findings: list[Finding] = []
    for number, (name, path) in enumerate(adapters.items()):
        progress(f"adapter {name}", number, len(adapters))
        try:
            opened[name] = load_adapter(name, path, rules)
        except LoraQuantError as error:
            findings.append(error_finding(error))
        else:
            findings += fitting.problems(opened[name])
    del graph, fitting
    if findings:
        return Drafted(None, findings=tuple(findings))
    strengths: dict[str, Mix] = {names[0]: {}, **{n: {n: 1.0} for n in adapters}, **given}
    config = LoraConfig(
        adapter=[
            AdapterConfig(name=name, adapter_lora_config=[path]) for name, path in adapters.items()
        ],
        attach_point_onnx_mapping=attach_points,
        use_cases=[
            UseCaseInputConfig(
                name=name,
                adapter_names=list(mix),
                adapter_alphas=[float(alpha) for alpha in mix.values()],
                model=base,
                encodings=(encodings or {}).get(name),
            )
            for name, mix in strengths.items()
        ],
    )
    kinds = {name: _kind(adapter) for name, adapter in opened.items()}
    notes = Notes(
        adapters={name: (kind,) for name, kind in kinds.items()},
        use_cases={names[0]: ("the base alone",)},
    )
    trial = try_build(config, progress) if check else Trial()
    return Drafted(config, notes, trial.findings, tuple(kinds.items()), trial.options)


def adapter_name(path: Path) -> str:
    """What an adapter is called by default: its file's stem, or its folder's name."""
    folder = path if path.is_dir() else path.parent
    return path.stem if path.is_file() and path.name not in FILES else folder.resolve().name


def _kind(adapter: Adapter) -> str:
    config = adapter.checkpoint.config
    modules = len(adapter.shapes)
    rank = f"rank {adapter.rank}, " if adapter.rank else ""
    return f"{config.peft_type}, {rank}{modules} module{'s' * (modules != 1)}"


def _free_name(taken: Mapping[str, Path]) -> str:
    return BASE if BASE not in {name.casefold() for name in taken} else "base only"


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        problem = folder_name_problem(name)
        if problem is not None:
            raise ConfigError(
                f"the name {name!r} {problem}",
                where=Where(use_case=name),
                hint="a use case's name becomes a folder: give the adapter another with NAME=PATH",
            )
    for index, earlier in clashes(names):
        raise ConfigError(
            f"the name {names[index]!r} is that of {earlier!r} already",
            where=Where(use_case=names[index]),
            hint="names of adapters and mixes must differ by more than case: give one another "
            "with NAME=PATH",
        )


def _check_known(what: str, asked: Iterable[str], known: Collection[str]) -> None:
    for name in asked:
        if name not in known:
            raise ConfigError(f"there is no {what} {name!r}", hint=did_you_mean(name, known))
