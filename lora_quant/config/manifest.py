"""`OUT/pack.json`: what a pack holds and what it was made from; runtime and validation read it.

Keys that are None are left out of the file. There is no time and no host name in it, and no
absolute path: the same input gives the same bytes, and a pack can be moved. The manifest covers
every file of the pack, and its own bytes by a seal (lora_quant.config.manifest_seal).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, Strict, model_validator
from pydantic_core import InitErrorDetails

from lora_quant.config.base_model import (
    ConfigModel,
    from_document,
    problem,
    raise_problems,
    to_document,
)
from lora_quant.config.document_text import read_bytes
from lora_quant.config.documents import LocatedDocument, dump_json, parse_json, read_json_located
from lora_quant.config.finding_records import FindingRecord
from lora_quant.config.manifest_records import (
    AdapterRecord,
    AlphaRecord,
    AttachPointRecord,
    BaseRecord,
    Count,
    InputRecord,
    OverridableRecord,
    PackFile,
    Sha256,
    TargetRecord,
    TensorRecord,
    ToolRecord,
    UseCaseRecord,
)
from lora_quant.config.manifest_seal import MANIFEST_FILE as MANIFEST_FILE
from lora_quant.config.manifest_seal import is_sealed, seal_manifest
from lora_quant.config.names import FolderName, clashes
from lora_quant.config.plain_values import PathParts
from lora_quant.errors import ConfigError, InputMissingError, Where, did_you_mean

MANIFEST_VERSION: Literal[1] = 1
_MAX_BYTES = 256 * 1024 * 1024


class Manifest(ConfigModel):
    """The manifest of a pack."""

    schema_version: Literal[1] = Field(default=1, description="Version of this layout.")
    manifest_sha256: Sha256 = Field(
        description="The seal: SHA-256 of the bytes of this file, where the 64 digits of this "
        "field are taken as zeros."
    )
    tool: ToolRecord
    mode: Literal["none", "adapter_only", "all"] = Field(
        description="Which tensors may change their encoding between use cases."
    )
    max_rank: Count = Field(description="The largest sum of ranks over the use cases.")
    alpha: AlphaRecord | None = Field(
        default=None, description="The input for the strengths; absent if the graph has none."
    )
    merged: FolderName | None = Field(
        default=None,
        description="The use case that was put into the base's weights; then nothing switches.",
    )
    merged_modules: Count | None = Field(
        default=None,
        description="How many modules of the base it changed; absent if nothing was merged.",
    )
    given_graph: Literal[True] | None = Field(
        default=None,
        description="Whether the base graph was given with its branches, as the final graph; "
        "absent if they were built.",
    )
    base: BaseRecord
    inputs: Annotated[tuple[InputRecord, ...], Strict(False)] = Field(
        default=(), description="What was read, apart from the base graph."
    )
    adapters: Annotated[tuple[AdapterRecord, ...], Strict(False)] = ()
    attach_points: Annotated[tuple[AttachPointRecord, ...], Strict(False)] = ()
    use_cases: Annotated[tuple[UseCaseRecord, ...], Strict(False)] = Field(min_length=1)
    tensors: Annotated[tuple[TensorRecord, ...], Strict(False)] = Field(
        default=(), description="The tensors that a weight pack replaces."
    )
    targets: Annotated[tuple[TargetRecord, ...], Strict(False)] = ()
    findings: Annotated[tuple[FindingRecord, ...], Strict(False)] = Field(
        default=(), description="What was noticed while the pack was made."
    )

    @model_validator(mode="after")
    def _check(self) -> Manifest:
        raise_problems(
            "Manifest",
            chain(
                self._name_problems(),
                self._slot_problems(),
                self._alpha_problems(),
                self._target_problems(),
            ),
        )
        return self

    def _name_problems(self) -> Iterator[InitErrorDetails]:
        for key, names in (
            ("adapters", [a.name for a in self.adapters]),
            ("attach_points", [a.name for a in self.attach_points]),
            ("tensors", [t.name for t in self.tensors]),
        ):
            seen: set[str] = set()
            for index, name in enumerate(names):
                if name in seen:
                    yield _taken((key, index), name)
                seen.add(name)
        for key, names in (
            ("use_cases", [u.name for u in self.use_cases]),
            ("targets", [t.name for t in self.targets]),
        ):
            for index, _ in clashes(names):
                yield _taken((key, index), names[index])

    def _slot_problems(self) -> Iterator[InitErrorDetails]:
        adapters = {a.name for a in self.adapters}
        for u, use_case in enumerate(self.use_cases):
            end = 0
            for s, slot in enumerate(use_case.slots):
                path = ("use_cases", u, "slots", s)
                if slot.adapter not in adapters:
                    yield problem(
                        (*path, "adapter"),
                        f"the adapter {slot.adapter!r} is not among the adapters",
                        did_you_mean(slot.adapter, adapters),
                        slot.adapter,
                    )
                if slot.start < end or slot.start + slot.rank > self.max_rank:
                    yield problem(
                        (*path, "start"),
                        f"the slot [{slot.start}, {slot.start + slot.rank}) overlaps the one "
                        f"before it or leaves the {self.max_rank} rank positions",
                        "slots follow each other within the max rank",
                        slot.start,
                    )
                end = slot.start + slot.rank

    def _alpha_problems(self) -> Iterator[InitErrorDetails]:
        """The strengths of every use case have a place in the input that carries them."""
        given: list[tuple[PathParts, AlphaRecord | None]] = [(("alpha",), self.alpha)]
        given += [(("targets", n, "alpha"), one.alpha) for n, one in enumerate(self.targets)]
        for path, alpha in given:
            if alpha is None or alpha.layout == "one":
                continue
            places = math.prod(alpha.shape)
            for use_case in self.use_cases:
                slots = use_case.slots
                needed = len(slots)
                if alpha.layout == "rank":
                    needed = max((slot.start + slot.rank for slot in slots), default=0)
                if needed > places:
                    yield problem(
                        (*path, "shape"),
                        f"the input has {places} strengths, and the use case {use_case.name!r} "
                        f"needs {needed}",
                        f"one for each {alpha.layout}",
                        list(alpha.shape),
                    )
                    break

    def _target_problems(self) -> Iterator[InitErrorDetails]:
        for number, target in enumerate(self.targets):
            path = ("targets", number)
            yield from _input_problems(path, target.inputs)
            adapters = any(file.role == "adapter" for file in target.files)
            if adapters and target.fingerprint is None:
                yield problem(
                    (*path, "fingerprint"),
                    f"the target {target.name!r} has adapter files and no fingerprint of its graph",
                    "without it, nothing tells whether an adapter is for this graph",
                    None,
                )
            alpha = self.alpha_of(target)
            given = [record.name for record in target.inputs if record.role == "alpha"]
            expected = [alpha.tensor] if alpha is not None and target.inputs else []
            if given != expected:
                yield problem(
                    (*path, "inputs"),
                    f"the inputs of the target {target.name!r} with the role alpha are {given}, "
                    f"expected {expected}",
                    "the strengths of all slots are one input",
                    None,
                )
            for index, record in enumerate(target.inputs):
                if alpha is None or record.name != alpha.tensor:
                    continue
                if record.shape != alpha.shape:
                    yield problem(
                        (*path, "inputs", index, "shape"),
                        f"the strengths {record.name!r} are {list(record.shape)}, expected "
                        f"{list(alpha.shape)} as `alpha` tells",
                        "it is one input",
                        list(record.shape),
                    )

    def files(
        self, target: str, *, role: str | None = None, use_case: str | None = None
    ) -> tuple[PackFile, ...]:
        """Files of a target, those of one role and one use case if given.

        Raises ConfigError if the pack was not made for the target.
        """
        for record in self.targets:
            if record.name == target:
                return tuple(
                    f
                    for f in record.files
                    if role in (None, f.role) and use_case in (None, f.use_case)
                )
        raise ConfigError(
            f"the pack holds nothing for the target {target!r}",
            hint=did_you_mean(target, [t.name for t in self.targets]),
        )

    def alpha_of(self, target: TargetRecord) -> AlphaRecord | None:
        """The input for the strengths of a target's graph; None if it has none."""
        return target.alpha or self.alpha

    def dump(self) -> str:
        """The content of `pack.json`, sealed."""
        return seal_manifest(dump_json(to_document(self, exclude_none=True)))


def _input_problems(
    target: PathParts, inputs: Sequence[OverridableRecord]
) -> Iterator[InitErrorDetails]:
    seen: set[str] = set()
    for index, record in enumerate(inputs):
        path = (*target, "inputs", index)
        if record.name in seen:
            yield _taken(path, record.name)
        seen.add(record.name)
        if record.part != "values" and record.of is None:
            yield problem(
                path,
                f"the input {record.name!r} is a {record.part}, and does not say of what",
                "name the tensor in `of`",
                None,
            )


def _taken(path: PathParts, name: str) -> InitErrorDetails:
    return problem(
        (*path, "name"), f"the name {name!r} is already taken", "names are unique here", name
    )


def read_manifest(path: Path, *, check_seal: bool = True) -> Manifest:
    """Read `pack.json`, or the one inside the folder `path`.

    Raises InputMissingError if it is missing, and ConfigError if it is not accepted, of a layout
    that this version does not know or, unless `check_seal` is false, changed since it was written.
    """
    file = path / MANIFEST_FILE if path.is_dir() else path
    try:
        content = read_bytes(file, max_bytes=_MAX_BYTES)
        manifest = _manifest_of(LocatedDocument(parse_json(content, source=file), source=file))
    except InputMissingError as error:
        missing = f"the folder is not a pack: it has no {MANIFEST_FILE}"
        raise InputMissingError(
            missing if path.is_dir() else "the pack does not exist",
            where=Where(file=path),
            hint="give the folder that `lora-quant build -o` wrote",
        ) from error
    except ConfigError:
        # Positions cost a second scan: they are made only when there is something to say.
        _manifest_of(read_json_located(file, max_bytes=_MAX_BYTES))
        raise
    if check_seal and not is_sealed(content):
        raise ConfigError(
            f"{MANIFEST_FILE} was changed since it was written",
            where=Where(file=file),
            hint="build the pack again, or take the file from an undamaged copy",
        )
    return manifest


def _manifest_of(document: LocatedDocument) -> Manifest:
    if isinstance(document.value, dict):
        version = document.value.get("schema_version", MANIFEST_VERSION)
        if type(version) is int and version > MANIFEST_VERSION:
            raise ConfigError(
                f"the manifest has the layout {version}, this version reads {MANIFEST_VERSION}",
                where=document.where(("schema_version",), field="schema_version"),
                hint="update lora-quant, or build the pack again",
            )
    return from_document(Manifest, document)
