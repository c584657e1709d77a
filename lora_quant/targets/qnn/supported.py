"""What the qnn target does not take, told before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lora_quant.config.names import MAX_NAME_BYTES, folder_key
from lora_quant.errors import ConfigError, UnsupportedAdapterError, Where
from lora_quant.graph.records import BranchedGraph, Form, Gate
from lora_quant.passes.compilation import Compilation

_NAME = "qnn"
_HINT = "leave this module out of the adapter, or build without --target qnn"


def check_supported(compilation: Compilation) -> None:
    """Raises ConfigError for options and a configuration, UnsupportedAdapterError for adapters."""
    where = Where(file=compilation.config_file)
    if compilation.options.merge is not None:
        raise ConfigError(
            f"target {_NAME!r} switches use cases at run time and cannot write a merged graph",
            where=Where(field="merge"),
            hint="leave out --merge, or --target qnn",
        )
    if compilation.merged is None:
        raise ConfigError(
            f"target {_NAME!r} needs encodings, and no use case brings any: the device computes "
            "with integers only",
            where=where,
            hint="give quant_overrides to every use case, and to one without adapters for the base",
        )
    branched: BranchedGraph = compilation.having("branched")
    for branch in branched.branches:
        point = branch.attach
        if point.linear.form is Form.EMBEDDING:
            raise _refused(point.name, "the low rank of an embedding, whose A is a table")
        if Gate.ROUTER in point.gates:
            raise _refused(point.name, "a branch with a router")
    for one in branched.replaced:
        raise _refused(one.parameter, "a parameter of the base that an adapter replaces")


def check_names(compilation: Compilation, own: Iterable[str], suffixes: Sequence[str]) -> None:
    """Raises ConfigError for a use case whose files would meet others of the target.

    `own` are the names of files that are written whatever is compiled; those of a use case have its
    name and one of `suffixes`.
    """
    taken = {folder_key(name) for name in own}
    for use_case in compilation.config.use_cases:
        for suffix in suffixes:
            name = use_case.name + suffix
            if folder_key(name) in taken:
                problem = f"gives the name {name!r} twice in the folder of the target"
            elif len(name.encode()) > MAX_NAME_BYTES:
                problem = f"gives a file name of more than {MAX_NAME_BYTES} bytes"
            else:
                taken.add(folder_key(name))
                continue
            raise ConfigError(
                f"the use case name {use_case.name!r} {problem}",
                where=Where(file=compilation.config_file, use_case=use_case.name),
                hint="choose another name for the use case",
            )


def _refused(module: str, what: str) -> UnsupportedAdapterError:
    return UnsupportedAdapterError(
        f"target {_NAME!r} does not have {what}",
        where=Where(module=module),
        hint=_HINT,
    )
