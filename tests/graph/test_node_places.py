"""The order of nodes that are put between others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from onnx import NodeProto, helper

from lora_quant.graph.files.node_places import place_nodes


def named(*names: str) -> list[NodeProto]:
    return [helper.make_node("Identity", [f"{name}_in"], [name], name=name) for name in names]


@given(
    st.integers(0, 5),
    st.integers(0, 3),
    st.dictionaries(st.integers(0, 4), st.integers(0, 3)),
    st.dictionaries(st.integers(0, 4), st.integers(0, 3)),
)
def test_nodes_stand_at_their_places_in_their_order(
    count: int, fronts: int, sizes: dict[int, int], ahead: dict[int, int]
) -> None:
    sizes = {position: size for position, size in sizes.items() if position < count}
    before = {
        at: [f"b{at}_{number}" for number in range(size)]
        for at, size in ahead.items()
        if at < count
    }
    front = [f"f{number}" for number in range(fronts)]
    behind = {at: [f"n{at}_{number}" for number in range(size)] for at, size in sizes.items()}
    wanted = list(front)
    for position in range(count):
        wanted += [*before.get(position, []), f"n{position}", *behind.get(position, [])]
    graph = helper.make_graph(named(*(f"n{number}" for number in range(count))), "g", [], [])
    held = list(graph.node)
    place_nodes(
        graph,
        named(*front),
        {at: named(*names) for at, names in behind.items()},
        {at: named(*names) for at, names in before.items()},
    )
    assert [node.name for node in graph.node] == wanted
    # Who holds a node of the graph still holds that one.
    assert [node.name for node in held] == [f"n{number}" for number in range(count)]
