"""A pack on disk, opened for running: its manifest, its graph, and what it was made from."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from onnx import ModelProto

from lora_quant import plugins
from lora_quant.adapters.adapter import Adapter, load_adapter
from lora_quant.adapters.files.peft_config import CONFIG_FILE
from lora_quant.config.lora_config import LoraConfig, read_lora_config
from lora_quant.config.manifest import Manifest, read_manifest
from lora_quant.config.manifest_records import (
    InputRecord,
    PackFile,
    StoredFile,
    TargetRecord,
    UseCaseRecord,
)
from lora_quant.engines.onnxruntime import Array
from lora_quant.errors import (
    ConfigError,
    InputMissingError,
    VerificationError,
    Where,
    did_you_mean,
)
from lora_quant.graph.files.data_files import sampled_sha256, sha256_of
from lora_quant.graph.files.model_file import load_model
from lora_quant.runtime.feeds.prompts import read_prompt, with_prompt


@dataclass(frozen=True, eq=False)
class Pack:
    """The folder of a pack and its manifest.

    `sources` says where the folder of the configuration is now (for a pack that was built from an
    object: what stands for the pack's own folder), if it or the pack was moved since the build.
    """

    folder: Path
    manifest: Manifest
    sources: Path | None = None

    def file(self, target: str, role: str, use_case: str | None = None) -> Path:
        """The one file of a role; VerificationError if the pack lacks it or its bytes changed."""
        found = self.manifest.files(target, role=role, use_case=use_case)
        if len(found) != 1:
            raise VerificationError(
                f"the pack has {len(found)} files of role {role!r}, expected one",
                where=Where(file=self.folder, use_case=use_case),
            )
        return self.checked(found[0])

    def target(self, name: str) -> TargetRecord:
        """What the manifest tells of a target; ConfigError if the pack was not built for it."""
        for record in self.manifest.targets:
            if record.name == name:
                return record
        raise ConfigError(
            f"the pack holds nothing for the target {name!r}",
            where=Where(file=self.folder),
            hint=did_you_mean(name, [t.name for t in self.manifest.targets]),
        )

    def graph(self, target: str) -> tuple[ModelProto, Path]:
        """The graph without external data, and its path."""
        path = self.file(target, "graph")
        for data in self.manifest.files(target, role="graph-data"):
            self.checked(data)
        return load_model(path).proto, path

    def with_prompt(
        self, target: str, use_case: UseCaseRecord, feeds: Mapping[str, Array]
    ) -> Mapping[str, Array]:
        """Inputs with the soft prompt that a target has for a use case; unchanged without one."""
        prompt = use_case.prompt
        if prompt is None:
            return feeds
        values = read_prompt(self.file(target, "prompt", use_case.name), prompt)
        return with_prompt(feeds, prompt, values)

    def base_graph(self, given: Path | None) -> tuple[ModelProto, Path]:
        """The base graph that the pack was built from, at `given` or where it was then."""
        base = self.manifest.base
        path = self._input(base.graph, given, "base graph", "--base")
        for data in base.data:
            self._check_data(data, path, base.graph.path, "the base graph")
        return load_model(path).proto, path

    def use_case_graph(self, record: InputRecord) -> Path:
        """A use case's own graph, where it was at build time; it is unchanged since."""
        what = f"graph of use case {record.name!r}"
        graph = self._input(record, None, what, None)
        for data in self.manifest.inputs:
            if data.role == "graph-data" and data.name == record.name:
                self._check_data(data, graph, record.path, f"the {what}")
        return graph

    def adapter(self, name: str) -> Adapter:
        """An adapter, opened where its files were at build time; they are unchanged since."""
        files = self.adapter_files(name)
        weights = [file for file in files if file.suffix != ".json"]
        if not weights:
            raise VerificationError(
                f"the manifest does not tell the weights of adapter {name!r}",
                where=Where(file=self.folder, adapter=name),
                hint="build the pack again",
            )
        # A configuration of another name than the usual one is what finds its weights.
        named = [file for file in files if file.suffix == ".json" and file.name != CONFIG_FILE]
        rules = plugins.Instances(plugins.LOWERING_RULES)
        task = next((a.task_id for a in self.manifest.adapters if a.name == name), None)
        return load_adapter(name, (named or weights)[0], rules, task=task)

    def adapter_files(self, name: str) -> list[Path]:
        """The files of an adapter where they were at build time; they are unchanged since."""
        records = [r for r in self.manifest.inputs if r.role == "adapter" and r.name == name]
        return [self._input(record, None, f"adapter {name!r}", None) for record in records]

    def mapping(self) -> Path | None:
        """The attach point mapping that the pack was built with."""
        return self._only("attach-points", "attach point mapping")

    def map_from(self) -> Path | None:
        """The float graph that told the modules of a quantized base."""
        return self._only("map-from", "float graph of the base")

    def strengths(self) -> Mapping[str, Mapping[str, float]]:
        """Use case -> adapter -> strength, from the configuration that the pack was built from.

        A pack that was built from an object has no such file; then the manifest's strengths stand.
        """
        if self.configuration is None:
            return {u.name: {s.adapter: s.alpha for s in u.slots} for u in self.manifest.use_cases}
        return {
            u.name: dict(zip(u.adapter_names, u.adapter_alphas, strict=True))
            for u in self.configuration[0].use_cases
        }

    @cached_property
    def configuration(self) -> tuple[LoraConfig, Path] | None:
        """The configuration and its file; None for a pack that was built from an object."""
        path = self._only("config", "configuration")
        return None if path is None else (read_lora_config(path), path)

    def _only(self, role: str, what: str) -> Path | None:
        """The one input of a role, where it was at build time; it is unchanged since."""
        for record in self.manifest.inputs:
            if record.role == role:
                return self._input(record, None, what, None)
        return None

    def _input(self, record: StoredFile, given: Path | None, what: str, option: str | None) -> Path:
        options = f"{option} or --sources" if option else "--sources"
        hint = f"say where it is with {options}, or build again"
        path = given
        if path is None and record.path is not None:
            path = self._source(record.path)
        if path is None or not path.is_file():
            raise InputMissingError(
                f"the {what} that the pack was built from is not there",
                where=Where(file=path or self.folder),
                hint=hint,
            )
        if sha256_of(path) != record.sha256:
            raise VerificationError(
                f"the {what} is not the one that the pack was built from: its SHA-256 differs",
                where=Where(file=path),
                hint=hint,
            )
        return path

    def _source(self, recorded: str) -> Path:
        """Where a file that is recorded relative to the pack's folder lies."""
        if self.sources is None:
            return Path(os.path.normpath(self.folder / recorded))
        config = next((r.path for r in self.manifest.inputs if r.role == "config"), None)
        beside = recorded if config is None else _beside(recorded, config)
        return Path(os.path.normpath(self.sources / beside))

    def _check_data(self, record: StoredFile, graph: Path, was: str | None, what: str) -> None:
        """A graph's weights lie beside it as they did, when it `was` there; compared by samples."""
        if record.path is None or was is None:
            return
        path = Path(os.path.normpath(graph.parent / _beside(record.path, was)))
        if not path.is_file():
            raise InputMissingError(f"the weights of {what} are not there", where=Where(file=path))
        if record.sampled_sha256 not in (None, sampled_sha256(path)):
            raise VerificationError(
                f"the weights of {what} are not those that the pack was built from",
                where=Where(file=path),
                hint="build the pack again, or say where the files are with --base or --sources",
            )

    def checked(self, record: PackFile) -> Path:
        """Where a file of the pack is; it is there, and unchanged since the build."""
        path = self.folder / record.path
        if not path.is_file():
            raise InputMissingError("a file of the pack is missing", where=Where(file=path))
        if sha256_of(path) != record.sha256:
            raise VerificationError(
                "a file of the pack was changed after it was built: its SHA-256 differs",
                where=Where(file=path),
                hint="build the pack again",
            )
        return path


def open_pack(folder: Path, sources: Path | None = None) -> Pack:
    """Open the pack in `folder`; errors as for read_manifest."""
    return Pack(folder, read_manifest(folder), sources)


def _beside(path: str, other: str) -> str:
    """`path` relative to the folder of `other`; both relative to one folder, wherever that is."""
    root = "/" + "_/" * (path.count("..") + other.count(".."))
    return posixpath.relpath(root + path, posixpath.dirname(root + other))
