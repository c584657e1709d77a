"""`genie_lora.json`: the use cases as Genie's `lora` block, at its place in a configuration.

both = tone + legal, three slots  ->  {"name": "both", "alphas": ["tone", "legal", "idle_2"], ...}

Every entry of the strengths' input has a name, since Genie sets strengths by name: the adapter's;
with the layout "rank" the adapter's and the number of the rank, with "one" those of all adapters.
What no adapter of the use case owns is idle: whatever strength it is given, its weights are zero.
"""

from __future__ import annotations

import math

from lora_quant.config.documents import dump_json
from lora_quant.config.genie import GenieLora, GenieLoraAdapter, in_genie_config
from lora_quant.config.manifest_records import AlphaRecord
from lora_quant.config.placeholders import placeholder
from lora_quant.passes.slots import Slot, SlotTable

_SECTION = placeholder(
    "path of this use case's section for the first of ctx-bins; add one entry for each further one"
)


def genie_text(alpha: AlphaRecord, slots: SlotTable) -> str:
    """The content of the file for a graph with these strengths."""
    adapters = [
        GenieLoraAdapter(
            version=1, name=name, alphas=entry_names(alpha, owned), bin_sections=[_SECTION]
        )
        for name, owned in slots.use_cases.items()
    ]
    block = GenieLora(version=1, alpha_tensor_name=alpha.tensor, adapters=adapters)
    return dump_json(in_genie_config(block))


def entry_names(alpha: AlphaRecord, slots: tuple[Slot, ...]) -> list[str]:
    """A name for every entry of the strengths' input of one use case, each of them once."""
    owners: dict[int, str] = {}
    for slot in slots:
        if alpha.layout == "one":
            owners[0] = "+".join(slot.adapter for slot in slots)
        elif alpha.layout == "slot":
            owners[slot.index] = slot.adapter
        else:
            owners |= {slot.start + rank: f"{slot.adapter}_{rank}" for rank in range(slot.rank)}
    names: list[str] = []
    taken = set(owners.values())
    for entry in range(math.prod(alpha.shape)):
        name = owners.get(entry)
        if name is None:
            name = f"idle_{entry}"
            while name in taken:
                name += "_"
            taken.add(name)
        names.append(name)
    return names
