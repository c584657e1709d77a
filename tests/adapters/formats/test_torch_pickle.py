from __future__ import annotations

import os
import pickle
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_quant.adapters.formats import torch_pickle
from lora_quant.adapters.formats.torch_pickle import Storage, StoredTensor, interpret
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from tests.adapters.formats.torch_bytes import (
    EMPTY_DICT,
    MARK,
    PROTO,
    REDUCE,
    STOP,
    TUPLE,
    name,
    number,
    parameter,
    sizes,
    state_dict,
    tensor,
    text,
)

FILE = Path("adapter_model.bin")
A = tensor("FloatStorage", "0", 6, 0, (2, 3), (3, 1))


def test_a_state_dict_is_a_dict_of_stored_tensors() -> None:
    expected = StoredTensor(Storage("0", "F32", 6), 0, (2, 3), (3, 1))
    assert interpret(state_dict({"a": A, "b": parameter(A)}), FILE) == {
        "a": expected,
        "b": expected,
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@settings(max_examples=50)
@given(
    value=st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**60), 2**60)
        | st.floats(allow_nan=False)
        # pickle writes texts of 256 bytes or more, and 2**63, with other opcodes as well
        | st.text(st.characters(codec="utf-8"), max_size=8),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=4), inner, max_size=4)
            | st.tuples(inner, inner)
        ),
        max_leaves=8,
    )
)
def test_plain_values_are_what_pickle_wrote(value: Any, protocol: int) -> None:
    assert interpret(pickle.dumps(value, protocol), FILE) == value


class Attack:
    """Pickles to a call of whatever it is given."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("touch hacked",), r"'(posix|nt)\.system'"),
        (eval, ("open('hacked', 'w')",), r"'(__builtin__|builtins)\.eval'"),
        (getattr, (1, "real"), r"'(__builtin__|builtins)\.getattr'"),
        (bytearray, (2**40,), r"'(__builtin__|builtins)\.bytearray'"),
    ],
)
def test_a_function_that_is_not_on_the_list_is_not_called(
    function: Any,
    arguments: tuple[Any, ...],
    named: str,
    protocol: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps({"a": Attack(function, *arguments)}, protocol)
    with pytest.raises(UnsupportedAdapterError, match=f"the pickle names {named}") as caught:
        interpret(data, FILE)
    assert "it is not run" in str(caught.value)
    assert "do not load this file with torch unless you trust it" in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (name("torch._utils", "_rebuild_tensor_v2") + b")R", "_rebuild_tensor_v2 with 0 arguments"),
        (name("torch._utils", "_rebuild_parameter") + b")R", "_rebuild_parameter with 0 arguments"),
        (name("torch", "FloatStorage") + number(2) + b"\x85R", "calls torch.FloatStorage with 1"),
        (name("collections", "OrderedDict") + text("x") + b"\x85R", "OrderedDict with 1 arguments"),
        (text("x") + b")R", "calls what is no function with 0 arguments"),
        (b"(iposix\nsystem\n", "the opcode INST"),
        (b"(" + name("collections", "OrderedDict") + b"o", "the opcode OBJ"),
        (name("collections", "OrderedDict") + b")\x81", "the opcode NEWOBJ"),
        (b"\x82\x01", "the opcode EXT1"),
        (b"Pid\n", "the opcode PERSID"),
        (b"\x96" + (4).to_bytes(8, "little") + b"abcd", "the opcode BYTEARRAY8"),
        (b"]2", "the opcode DUP"),
    ],
)
def test_what_a_file_of_tensors_does_not_need_is_refused(made: bytes, message: str) -> None:
    with pytest.raises(UnsupportedAdapterError, match=message) as caught:
        interpret(PROTO + made + STOP, FILE)
    assert caught.value.where.file == FILE


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (b"", "list"),
        (b"h\x07", "7"),
        (b"u", "no mark"),
        (EMPTY_DICT + text("a") + b"u", "no mark"),
        (EMPTY_DICT + MARK + text("a") + b"u", "zip"),
        (EMPTY_DICT + sizes((1, 2)) + number(1) + b"s", "got a tuple, expected a str"),
        (text("x") + text("a") + number(1) + b"s", "got a str, expected a dict"),
        (number(1) + b"Q", "a persistent id is 1, expected that of a storage"),
        (
            MARK + text("storage") + text("F") + text("0") + text("cpu") + number(1) + TUPLE + b"Q",
            "the type of a storage is 'F'",
        ),
        (tensor("FloatStorage", "0", 1, 0, [1] * 33, [1] * 33), "33 axes, expected at most 32"),
        (b"X\xff\xff\xff\x7fabc", "2147483647 bytes are claimed, 4 are left"),
        (b"X\x01\x00\x00\x00\xff", "utf-8"),
        (b"c" + b"x" * 3000, "no name ends within 2000 bytes"),
        (b"\xff", "0xff is no opcode"),
    ],
)
def test_damage_is_an_adapter_error_with_its_place(made: bytes, message: str) -> None:
    with pytest.raises(AdapterError, match=rf"the pickle is damaged at byte \d+: .*({message})"):
        interpret(PROTO + made + STOP, FILE)


def test_a_pickle_cut_at_any_byte_is_an_adapter_error() -> None:
    whole = state_dict({"a": A, "b": parameter(A)})
    for length in range(len(whole)):
        with pytest.raises(AdapterError) as caught:
            interpret(whole[:length], FILE)
        assert type(caught.value) is AdapterError


@settings(max_examples=300)
@given(data=st.data())
def test_a_damaged_pickle_is_a_value_or_an_adapter_error(data: st.DataObject) -> None:
    whole = bytearray(state_dict({"a": A, "b": parameter(A)}))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole)))
        whole[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        interpret(bytes(whole), FILE)
    except AdapterError:
        return


@settings(max_examples=300)
@given(data=st.binary(max_size=60))
def test_any_bytes_are_a_value_or_an_adapter_error(data: bytes) -> None:
    try:
        interpret(PROTO + data + STOP, FILE)
    except AdapterError:
        return


def _doubled(depth: int) -> bytes:
    """A tuple that holds a tuple twice, which holds a tuple twice, and so on."""
    made = b")q\x00"
    for level in range(depth):
        made += b"h" + bytes([level]) + b"h" + bytes([level]) + b"\x86q" + bytes([level + 1])
    return made


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(b"]r\xff\xff\xff\x7f", id="a memo of two billion places"),
        pytest.param(b"X\xff\xff\xff\xff", id="a text of four gigabytes"),
        pytest.param(EMPTY_DICT + b"q\xff" + _doubled(200) + b"Ns", id="a key that is 2**200 long"),
        pytest.param(_doubled(200) + b"Q", id="a persistent id that is 2**200 long"),
        pytest.param(b"(" * 60_000 + b"t" * 60_000, id="60000 tuples inside each other"),
        pytest.param(
            name("collections", "OrderedDict") + b"q\x00" + b"h\x00)R" * 20_000,
            id="20000 calls",
        ),
    ],
)
def test_a_bomb_costs_neither_time_nor_memory(made: bytes) -> None:
    data = PROTO + made + STOP
    started = time.process_time()
    tracemalloc.start()
    try:
        interpret(data, FILE)
    except AdapterError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    # an empty list with its place on the stack is the largest thing that one byte makes: 72 bytes;
    # tracing makes a step cost about ten times its usual microsecond
    assert peak < 128 * len(data) + 1_000_000
    assert time.process_time() - started < 60


def test_the_number_of_steps_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch_pickle._MAX_STEPS == 2_000_000
    monkeypatch.setattr(torch_pickle, "_MAX_STEPS", 2_000)
    assert interpret(EMPTY_DICT + b"q\x00" * 1_998 + STOP, FILE) == {}
    with pytest.raises(AdapterError, match="it has more than 2000 steps"):
        interpret(b"]" * 2_001 + STOP, FILE)


def test_nothing_of_torch_or_of_the_named_modules_is_imported() -> None:
    import sys

    before = set(sys.modules)
    with pytest.raises(UnsupportedAdapterError):
        interpret(PROTO + name("xmlrpc.server", "main") + STOP, FILE)
    interpret(state_dict({"a": A}), FILE)
    assert "torch" not in set(sys.modules) - before
    assert "xmlrpc.server" not in set(sys.modules) - before


def test_a_call_of_a_name_from_the_stack_is_held_to_the_list() -> None:
    made = text("posix") + text("system") + b"\x93" + text("true") + b"\x85" + REDUCE
    with pytest.raises(UnsupportedAdapterError, match=r"names 'posix\.system'"):
        interpret(b"\x80\x04" + made + STOP, FILE)
