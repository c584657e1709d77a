"""Grids of A and B of exported use cases: channels and blocks go where the ranks go."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_quant.encodings.encoding import Encoding
from lora_quant.errors import EncodingsError, LoraQuantError
from lora_quant.passes.merging.contributions import Contribution
from lora_quant.passes.merging.exported_pieces import PieceRanks
from lora_quant.passes.merging.exported_weights import grid_of_b
from tests.passes.exported_builds import (
    INPUTS,
    OURS,
    OUTPUTS,
    Entries,
    Own,
    build_exported,
)
from tests.passes.exported_cases import (
    A_LEGAL,
    A_TONE,
    B_GRIDS,
    CHAINED,
    JOINED,
    MIX,
    RANKS,
    SHARED,
    TONE,
    all_rules,
    both,
    grids,
)
from tests.passes.kind_builds import grid, weight
from tests.sample import Document

BLOCK = 2


def test_ranks_side_by_side_keep_their_grids(tmp_path: Path) -> None:
    built = both(tmp_path, Own(JOINED), SHARED)
    found = built.overrides("both")
    assert grids(found) == {role: SHARED[f"1.{role}"] for role in OURS}
    assert all_rules(built) == set()


def test_channels_of_a_move_with_the_ranks(tmp_path: Path) -> None:
    """legal before tone in the file, two ranks of padding behind; tone is the first slot."""
    filler = [0.9, 0.8]
    files = {**SHARED, "1.A": weight(A_LEGAL + A_TONE + filler)}
    use_cases = {
        "both": (Own((("legal", "tone"),), padding=2), MIX),
        "tone": (Own(), TONE),
        "legal": (Own(), {"legal": 1.0}),
    }
    alone = {"1.B": weight(B_GRIDS)}
    given = {
        "both": files,
        "tone": {**alone, "1.A": weight(A_TONE)},
        "legal": {**alone, "1.A": weight(A_LEGAL)},
    }
    built = build_exported(tmp_path, use_cases, given, RANKS)
    assert built.overrides("both")[OURS["A"]]["scale"] == A_TONE + A_LEGAL
    assert built.overrides("both")[OURS["B"]]["scale"] == B_GRIDS
    # the ranks that legal leaves idle repeat the largest scale
    assert built.overrides("legal")[OURS["A"]]["scale"] == A_LEGAL + [max(A_LEGAL)] * 2


def test_a_grid_of_another_rank_is_refused(tmp_path: Path) -> None:
    files = {**SHARED, "1.A": weight([0.02] * 5)}
    with pytest.raises(LoraQuantError, match="covers 5 channels") as caught:
        both(tmp_path, Own(JOINED), files)
    assert caught.value.where.tensor == OURS["A"]


@pytest.mark.parametrize("version", ["0.6.1", "2.0.0"])
@pytest.mark.parametrize("stored_out_in", [False, True])
def test_every_version_tells_the_same(version: str, stored_out_in: bool, tmp_path: Path) -> None:
    """2.0.0 names the axes of the weight as the use case's graph stores it."""
    expected = both(tmp_path / "first", Own(JOINED), SHARED).overrides("both")
    own = Own(JOINED, stored_out_in=stored_out_in)
    files = _in_version(SHARED, version, axis=0 if stored_out_in else 1)
    built = both(tmp_path / "second", own, files, encodings_version="1.0.0")
    assert grids(built.overrides("both")) == grids(expected)


def test_a_of_rank_1_in_0_6_1_is_a_channel(tmp_path: Path) -> None:
    """Its header tells what its one entry cannot."""
    ranks = {"tone": 1, "legal": 1}
    files = {**CHAINED, "1.A": weight([0.04]), "2.A": weight([0.05])}
    document_061 = _in_version(files, "0.6.1", axis=1)
    document_061["quantizer_args"] = {"per_channel_quantization": True}
    built = build_exported(
        tmp_path, {"both": (Own(), MIX)}, {"both": document_061}, ranks, encodings_version="1.0.0"
    )
    entry = built.overrides("both")[OURS["A"]]
    assert (entry["enc_type"], entry["scale"]) == ("PER_CHANNEL", [0.04, 0.05])


def _in_version(found: Entries, version: str, *, axis: int) -> Document:
    """A document of 0.6.1 or 2.0.0; `axis` is that of the channels of A and B."""
    if version == "2.0.0":
        return {
            "version": version,
            "encodings": [_of_2_0_0(name, entry, axis) for name, entry in found.items()],
        }
    result: Document = {"version": version, "activation_encodings": {}, "param_encodings": {}}
    for name, entry in found.items():
        section = "param_encodings" if name.endswith((".A", ".B")) else "activation_encodings"
        steps = 2 ** entry["bw"] - 1
        result[section][name] = [
            {
                "bitwidth": entry["bw"],
                "dtype": "int",
                "is_symmetric": str(entry["is_sym"]),
                "scale": scale,
                "offset": offset,
                "min": offset * scale,
                "max": (offset + steps) * scale,
            }
            for scale, offset in zip(entry["scale"], entry["offset"], strict=True)
        ]
    return result


def _of_2_0_0(name: str, entry: Document, axis: int) -> Document:
    is_signed = entry["is_sym"]
    shift = 2 ** (entry["bw"] - 1) if is_signed else 0
    points = [-(offset + shift) for offset in entry["offset"]]
    kind = f"{'' if is_signed else 'u'}int{entry['bw']}"
    if entry["enc_type"] == "PER_TENSOR":
        made = {"y_scale": entry["scale"][0], "y_zero_point": points[0]}
    else:
        made = {"y_scale": entry["scale"], "y_zero_point": points, "axis": axis}
    return {"name": name, "output_dtype": kind, **made}


def _blocks(channels: int, blocks: int, first: float) -> Document:
    """A scale per channel and block, flat as 1.0.0 has it: channel after channel."""
    scale = [first + channel + block / 10 for channel in range(channels) for block in range(blocks)]
    entry = grid(scale, [-128] * len(scale), bits=8, symmetric=True)
    return {**entry, "enc_type": "PER_BLOCK", "block_size": BLOCK}


def _rows(entry: Document, channels: int) -> list[list[float]]:
    """The scales of a flat entry, channel by channel."""
    scale = entry["scale"]
    count = len(scale) // channels
    return [scale[i * count : (i + 1) * count] for i in range(channels)]


def test_blocks_move_with_the_ranks(tmp_path: Path) -> None:
    """A has blocks along its inputs, which go with its rows; B has them along the ranks."""
    a, b = _blocks(8, INPUTS // BLOCK, 1.0), _blocks(OUTPUTS, 8 // BLOCK, 50.0)
    files = {**SHARED, "1.A": a, "1.B": b}
    alone = {"tone": (Own(), TONE), "legal": (Own(), {"legal": 1.0})}
    use_cases = {"both": (Own((("legal", "tone"),), padding=2), MIX), **alone}
    given: dict[str, Entries] = {"both": files}
    for name, rank in RANKS.items():
        own = {"1.A": _blocks(rank, INPUTS // BLOCK, 7.0), "1.B": _blocks(OUTPUTS, rank // 2, 9.0)}
        given[name] = own
    built = build_exported(tmp_path, use_cases, given, RANKS, rank_multiple=BLOCK)
    found = built.overrides("both")
    rows = _rows(a, 8)
    # tone's ranks lie behind the four of legal
    assert _rows(found[OURS["A"]], 6) == rows[4:6] + rows[:4]
    columns = _rows(b, OUTPUTS)
    assert _rows(found[OURS["B"]], OUTPUTS) == [[row[2], row[0], row[1]] for row in columns]


def test_an_adapter_that_cuts_a_block_is_refused(tmp_path: Path) -> None:
    ranks = {"tone": 3, "legal": 3}
    files = {**SHARED, "1.A": weight([0.03] * 6), "1.B": _blocks(OUTPUTS, 3, 1.0)}
    with pytest.raises(EncodingsError, match=r"begin at 3 .* inside a block of 2") as caught:
        build_exported(tmp_path, {"both": (Own(JOINED), MIX)}, {"both": files}, ranks)
    assert caught.value.where.tensor == OURS["B"]


def test_an_adapter_that_ends_inside_a_block_keeps_the_whole_block() -> None:
    """Blocks of 2, three ranks of tone: the fourth of its columns is nobody's, legal begins at 4.

    The graph has legal before tone, with a column of padding behind both.
    """

    def columns(*scale: float) -> Encoding:
        return Encoding.per_block(
            [list(scale)], bits=8, symmetric=True, block_size=2, axis=0, block_axis=1, ndim=2
        )

    def own(begin: int, size: int, slot: int) -> PieceRanks:
        item = Contribution(slot, 0, 4 * slot, size, 1.0, 1.0)
        return PieceRanks(begin, size, item)

    ranks = [(0, own(4, 3, 0)), (0, own(0, 3, 1))]
    found = grid_of_b([columns(1.0, 2.0, 3.0, 4.0)], ranks)
    assert found.same_grid(columns(3.0, 4.0, 1.0, 2.0))
