"""Gates: which tokens a gated slot acts on.

gate [batch, tokens], 1 on and 0 off   ->   the gate input [batch, tokens, *alpha]
slots without a gate, and use cases without gated slots, have ones
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lora_quant.config.manifest_records import AlphaRecord, SlotRecord, UseCaseRecord
from lora_quant.engines.onnxruntime import Array
from lora_quant.errors import VerificationError, Where, did_you_mean

Gate = Array | Mapping[str, Array]
"""`[batch, tokens]` for every gated adapter of the use case, or one each by adapter."""

_AXES = 2


def token_gate(token_ids: Array, invocation: Sequence[int]) -> Array:
    """`[batch, tokens]` float32: 1 from the start of the last occurrence of `invocation` on.

    A sequence without it has zeros, as has every sequence if `invocation` is empty. token_ids:
    `[batch, tokens]` of integers, VerificationError otherwise.
    """
    ids = np.asarray(token_ids)
    if ids.ndim != _AXES or not np.issubdtype(ids.dtype, np.integer):
        raise VerificationError(
            f"token ids are {ids.dtype} {list(ids.shape)}, expected integers [batch, tokens]"
        )
    gate = np.zeros(ids.shape, np.float32)
    count, tokens = len(invocation), ids.shape[1]
    if count == 0 or tokens < count:
        return gate
    windows = np.lib.stride_tricks.sliding_window_view(ids, count, axis=1)
    found = (windows == np.asarray(invocation)).all(axis=-1)
    last = found.shape[1] - 1 - found[:, ::-1].argmax(axis=1)
    has = found.any(axis=1)
    gate[:] = (np.arange(tokens) >= last[:, None]) & has[:, None]
    return gate


def gate_input(
    alpha: AlphaRecord,
    use_case: UseCaseRecord | None,
    gate: Gate | None,
    fixed: Sequence[int | None] = (None, None),
) -> Array:
    """The values of the graph's gate input; `fixed` are its sizes of batch and tokens, if it says.

    Raises VerificationError if a gated slot has no gate, a gate belongs to nothing, or gates are
    not `[batch, tokens]` alike and of the fixed sizes.
    """
    if alpha.gate is None:
        raise ValueError("the graph has no gate input")
    dtype = np.float16 if alpha.gate.dtype == "float16" else np.float32
    gates = _by_adapter(use_case, gate)
    given = next((one.shape for one in gates.values()), (1, 1))
    sizes = tuple(size or own for size, own in zip(fixed, given, strict=True))
    if any(own not in (1, size) for size, own in zip(sizes, given, strict=True)):
        raise VerificationError(
            f"the gate is {list(given)}, expected {list(sizes)}: the graph has fixed sizes of "
            "batch and tokens",
            where=Where(use_case=None if use_case is None else use_case.name),
        )
    values = np.ones((*sizes, *alpha.gate.shape), dtype)
    by_position = values.reshape(*sizes, -1)
    for index, slot in enumerate(use_case.slots if use_case is not None else ()):
        if slot.adapter in gates:
            by_position[:, :, _positions(alpha, index, slot)] = gates[slot.adapter][:, :, None]
    return values


def refuse_gate(use_case: UseCaseRecord | None) -> VerificationError:
    """The error for a gate that nothing would read."""
    name = None if use_case is None else use_case.name
    who = "the base" if name is None else f"the use case {name!r}"
    return VerificationError(
        f"{who} has no gated adapter, so a gate would change nothing",
        where=Where(use_case=name),
        hint="leave out the gate",
    )


def _by_adapter(use_case: UseCaseRecord | None, gate: Gate | None) -> dict[str, Array]:
    gated = [s.adapter for s in (use_case.slots if use_case is not None else ()) if s.gated]
    if gate is None and not gated:
        return {}
    if not gated:
        raise refuse_gate(use_case)
    name = None if use_case is None else use_case.name
    given = gate if isinstance(gate, Mapping) else dict.fromkeys(gated, gate)
    for adapter in given:
        if adapter not in gated:
            raise VerificationError(
                f"the use case {name!r} has no gated adapter {adapter!r}",
                where=Where(use_case=name),
                hint=did_you_mean(adapter, gated),
            )
    gates: dict[str, Array] = {}
    for adapter in gated:
        one = given.get(adapter)
        if one is None:
            raise VerificationError(
                f"the adapter {adapter!r} acts on some tokens only, and no gate says which",
                where=Where(use_case=name, adapter=adapter),
                hint="give gate=[batch, tokens], 1 for on and 0 for off; Session.gate makes it of "
                "the token ids (--gate-from INPUT on the command line)",
            )
        gates[adapter] = _checked(np.asarray(one), adapter, name)
    if len({one.shape for one in gates.values()}) > 1:
        shapes = ", ".join(str(list(one.shape)) for one in gates.values())
        raise VerificationError(
            f"the gates of one run have the shapes {shapes}, expected one [batch, tokens]",
            where=Where(use_case=name),
        )
    return gates


def _checked(gate: Array, adapter: str, use_case: str | None) -> Array:
    is_number = gate.dtype == np.bool_ or np.issubdtype(gate.dtype, np.number)
    if gate.ndim != _AXES or not is_number or not np.isfinite(gate).all():
        raise VerificationError(
            f"the gate is {gate.dtype} {list(gate.shape)}, expected finite numbers [batch, tokens]",
            where=Where(use_case=use_case, adapter=adapter),
        )
    return gate


def _positions(alpha: AlphaRecord, index: int, slot: SlotRecord) -> slice:
    if alpha.layout == "slot":
        return slice(index, index + 1)
    return slice(slot.start, slot.start + slot.rank)
