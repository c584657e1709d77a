"""A pack on disk, opened for running: its manifest, its graph, and what it was made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto

from lora_quant.config.manifest import Manifest, read_manifest
from lora_quant.config.manifest_records import PackFile, StoredFile
from lora_quant.errors import InputMissingError, VerificationError, Where
from lora_quant.graph.data_files import sha256_of


@dataclass(frozen=True, eq=False)
class Pack:
    """The folder of a pack and its manifest."""

    folder: Path
    manifest: Manifest

    def file(self, target: str, role: str, use_case: str | None = None) -> Path:
        """The one file of a role; VerificationError if the pack lacks it or its bytes changed."""
        found = self.manifest.files(target, role=role, use_case=use_case)
        if len(found) != 1:
            raise VerificationError(
                f"the pack has {len(found)} files of role {role!r}, expected one",
                where=Where(file=self.folder, use_case=use_case),
            )
        return self._checked(found[0])

    def graph(self, target: str) -> tuple[ModelProto, Path]:
        """The graph without external data, and its path."""
        path = self.file(target, "graph")
        return onnx.load(str(path), load_external_data=False), path

    def base_graph(self, given: Path | None) -> tuple[ModelProto, Path]:
        """The base graph that the pack was built from, at `given` or where it was then."""
        path = self._input(self.manifest.base.graph, given, "base graph", "--base")
        return onnx.load(str(path), load_external_data=False), path

    def adapter_file(self, adapter: str) -> Path:
        """The weights of an adapter where they were at build time, unchanged since."""
        records = [
            r
            for r in self.manifest.inputs
            if r.role == "adapter" and r.name == adapter and str(r.path).endswith(".safetensors")
        ]
        return self._input(records[0], None, f"adapter {adapter!r}", None)

    def _input(self, record: StoredFile, given: Path | None, what: str, option: str | None) -> Path:
        hint = f"say where it is with {option}" if option else "put it back, or build again"
        path = given or (self.folder / record.path if record.path else None)
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
                hint="build the pack again, or " + hint,
            )
        return path

    def _checked(self, record: PackFile) -> Path:
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


def open_pack(folder: Path) -> Pack:
    """Open the pack in `folder`; errors as for read_manifest."""
    return Pack(folder, read_manifest(folder))
