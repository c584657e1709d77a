"""Encodings of a branch's router.

logits, and their re-layout      as given; nothing tells their range
softmax, mean, q                 from 0 to 1
s * q                            the range of s, which contains 0
W_r                              as given, else from its values
E_r, rest                        zeros and ones: a symmetric grid that ends at 1
"""

from __future__ import annotations

from lora_quant.encodings.calibrate import from_range
from lora_quant.encodings.convert import TensorFacts
from lora_quant.encodings.encoding import Encoding
from lora_quant.graph.records import Router
from lora_quant.passes.merging.axes import resolved
from lora_quant.passes.merging.collected import Sources, UseCaseEncodings

# How many tensors of a router come before the softmax: the logits and the re-layout of them.
_LOGITS = 2


def add_router(
    result: UseCaseEncodings, sources: Sources, router: Router, s: Encoding | None
) -> None:
    """Add the encodings of one router that the use case uses; `s` is the grid of s."""
    options = sources.compilation.options
    share = from_range(0.0, 1.0, bits=options.activation_bits)
    logits, shares = router.tensors[:_LOGITS], router.tensors[_LOGITS:-1]
    known: dict[str, Encoding | None] = dict.fromkeys(shares, share)
    known[router.tensors[-1]] = s
    # The second one only changes the layout of the first.
    told = next((sources.file[tensor] for tensor in logits if tensor in sources.file), None)
    known.update(dict.fromkeys(logits, told))
    for tensor, computed in known.items():
        given = sources.file.get(tensor)
        if given is not None:
            result.take(tensor, given)
        elif computed is not None:
            result.encodings[tensor] = computed
        else:
            result.missing_activation(tensor, "logits of the router")
    for record in (router.weight, router.expansion, router.rest):
        given = sources.file.get(record.name)
        if given is not None:
            # Channels are the columns, of `rest` its only axis.
            facts = TensorFacts(record.shape, len(record.shape) - 1)
            result.take(record.name, resolved(given, facts, result.where(record.name)))
            continue
        ends = sources.range_of(record.name) if record is router.weight else (0.0, 1.0)
        result.encodings[record.name] = from_range(
            *ends, bits=options.weight_bits, symmetric=True, single=True
        )
