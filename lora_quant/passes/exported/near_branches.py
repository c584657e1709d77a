"""What looks like a branch and was not taken as one; refused where an adapter should be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lora_quant.config.lora_config import UseCaseInputConfig
from lora_quant.errors import GraphError, Where
from lora_quant.graph.attach.module_names import path_of_node_name
from lora_quant.graph.exported.records import NearBranch
from lora_quant.passes.exported.descriptions import Described


def near_hint(near: Sequence[NearBranch], otherwise: str | None) -> str | None:
    """What to do about a graph that is not the base, when something in it is nearly a branch."""
    if not near:
        return otherwise
    more = f" (and {len(near) - 1} more)" if len(near) > 1 else ""
    return (
        f"{near[0].node!r} looks like a branch and was not taken as one: {near[0].reason}{more}; "
        "export it as A, scale, B and an Add to the output of the base's own node"
    )


def near_problem(
    near: NearBranch,
    use_case: UseCaseInputConfig,
    described: Mapping[str, Described],
    modules: Sequence[str],
) -> GraphError | None:
    """The refusal of what is nearly the branch of a module that an adapter is described to have.

    `modules` are those that have a branch.
    """
    module = path_of_node_name(near.node)
    if module is None:
        return None
    levels = module.split(".")
    paths = [".".join(levels[:end]) for end in range(len(levels), 0, -1)]
    for path in paths:
        if path in modules:
            return None
        for name, one in described.items():
            if path in one.settings([path]):
                return GraphError(
                    f"what adapter {name!r} has at module {path!r} looks like a branch and is "
                    f"none: {near.reason}",
                    where=Where(
                        file=use_case.model, use_case=use_case.name, module=path, node=near.node
                    ),
                    hint="export it as A, scale, B and an Add to the output of the base's own node",
                )
    return None
