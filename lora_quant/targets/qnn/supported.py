"""What the qnn target does not take, told before anything is written."""

from __future__ import annotations

from lora_quant.errors import ConfigError, UnsupportedAdapterError, Where
from lora_quant.findings import Finding, Severity
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


def own_data(compilation: Compilation) -> tuple[Finding, ...]:
    """What is said of a build beside the base, whose data the other targets share."""
    if not compilation.options.beside_base:
        return ()
    return (
        Finding(
            rule="qnn/beside-base",
            severity=Severity.NOTE,
            message=f"target {_NAME!r} has a data file of its own in the pack, and does not share "
            "that of the base: its weights are quantized",
            where=Where(file=compilation.base.path),
        ),
    )


def _refused(module: str, what: str) -> UnsupportedAdapterError:
    return UnsupportedAdapterError(
        f"target {_NAME!r} does not have {what}",
        where=Where(module=module),
        hint=_HINT,
    )
