"""The pickle inside a `torch.save` file, interpreted without running any of it.

A pickle is a program that calls what it names. Here nothing is called: a few opcodes build plain
values, a name stays a name, and a call is looked up in a list of five, each with a meaning of our
own. Whatever else occurs is refused where it stands. `pickle.Unpickler` is not used, since even
with every name refused a pickle can make it allocate memory without bound.

    collections.OrderedDict()                       {}
    torch._utils._rebuild_tensor_v2(storage, ...)   StoredTensor
    torch._utils._rebuild_parameter(tensor, ...)    the tensor
    torch.FloatStorage and its kin                  a dtype, in the persistent id of a storage
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from lora_quant.adapters.formats.torch_opcodes import opcodes
from lora_quant.errors import AdapterError, UnsupportedAdapterError, Where, cut

STORAGE_DTYPES: Mapping[str, str] = {
    "BFloat16Storage": "BF16",
    "BoolStorage": "BOOL",
    "ByteStorage": "U8",
    "CharStorage": "I8",
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "IntStorage": "I32",
    "LongStorage": "I64",
    "ShortStorage": "I16",
}
_ORDERED_DICT = ("collections", "OrderedDict")
_TENSOR = ("torch._utils", "_rebuild_tensor_v2")
_PARAMETER = ("torch._utils", "_rebuild_parameter")
_CALLABLE = (_ORDERED_DICT, _TENSOR, _PARAMETER)
_MAX_STEPS = 2_000_000
_MAX_AXES = 32
_SAFE = "load the adapter with PEFT and save it with save_pretrained(safe_serialization=True)"


@dataclass(frozen=True)
class Storage:
    """A storage that the pickle refers to: entry `data/<key>` of the archive."""

    key: str
    dtype: str
    numel: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the pickle describes it; nothing in it has been checked against the storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _Name:
    """A global that the pickle names; never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class _Mark:
    """Where a MARK opcode left the stack."""


def interpret(data: bytes, file: Path) -> Any:
    """The value of a pickle made of dicts, lists, texts, numbers and tensors.

    Raises UnsupportedAdapterError for a name or an opcode that is not on the list, AdapterError for
    damage; nothing else, whatever the bytes are. Work and memory are linear in `len(data)`.
    """
    machine = _Machine(file)
    position = 0
    try:
        for opcode, argument, at in opcodes(data):
            position = at
            if opcode != "STOP":
                machine.step(opcode, argument)
        return machine.pop()
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, AttributeError) as error:
        raise AdapterError(
            f"the pickle is damaged at byte {position}: {_short(error)}",
            where=Where(file=file),
            hint="the file is cut short or damaged; copy or download it again",
        ) from error


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(self, file: Path) -> None:
        self._where = Where(file=file)
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._steps = 0

    def pop(self) -> Any:
        return self._stack.pop()

    def step(self, opcode: str, argument: Any) -> None:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise ValueError(f"it has more than {_MAX_STEPS} steps")
        if opcode in _IGNORED:
            return
        if opcode in _LITERALS:
            self._stack.append(argument)
        elif opcode in _CONSTANTS:
            self._stack.append(_CONSTANTS[opcode])
        elif opcode in _NEW:
            self._stack.append(_NEW[opcode]())
        elif opcode in _SHORT_TUPLES:
            count = _SHORT_TUPLES[opcode]
            if len(self._stack) < count:
                raise IndexError("the stack is empty")
            values = tuple(self._stack[-count:])
            del self._stack[-count:]
            self._stack.append(values)
        else:
            handler = _HANDLERS.get(opcode)
            if handler is None:
                raise UnsupportedAdapterError(
                    f"the pickle holds the opcode {opcode}, which a file of tensors does not need; "
                    "it is not run",
                    where=self._where,
                    hint=_SAFE,
                )
            handler(self, argument)

    def put(self, argument: int | None) -> None:
        self._memo[len(self._memo) if argument is None else argument] = self._stack[-1]

    def get(self, argument: int) -> None:
        self._stack.append(self._memo[argument])

    def mark(self, _: None) -> None:
        self._stack.append(_Mark)

    def tuple_from_mark(self, _: None) -> None:
        self._stack.append(tuple(self._since_mark()))

    def append(self, _: None) -> None:
        value = self._stack.pop()
        self._a(list, self._stack[-1]).append(value)

    def appends(self, _: None) -> None:
        values = self._since_mark()
        self._a(list, self._stack[-1]).extend(values)

    def set_item(self, _: None) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._a(dict, self._stack[-1])[self._key(key)] = value

    def set_items(self, _: None) -> None:
        values = self._since_mark()
        keys = map(self._key, values[::2])
        self._a(dict, self._stack[-1]).update(zip(keys, values[1::2], strict=True))

    def build(self, _: None) -> None:
        # torch hangs `_metadata` on a state dict so; it describes module versions, not values
        self._a(dict, self._stack.pop())
        self._a(dict, self._stack[-1])

    def name(self, argument: tuple[str, str]) -> None:
        self._push_name(*argument)

    def name_from_stack(self, _: None) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._push_name(self._a(str, module), self._a(str, name))

    def persistent(self, _: None) -> None:
        value = self._stack.pop()
        if not isinstance(value, tuple) or len(value) != 5 or value[0] != "storage":
            raise ValueError(f"a persistent id is {_short(value)}, expected that of a storage")
        _, kind, key, _, numel = value
        if not isinstance(kind, _Name) or kind.module != "torch":
            raise ValueError(f"the type of a storage is {_short(kind)}")
        self._stack.append(
            Storage(self._a(str, key), STORAGE_DTYPES[kind.name], self._a(int, numel))
        )

    def call(self, _: None) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._a(tuple, arguments)
        target = (function.module, function.name) if isinstance(function, _Name) else None
        if target == _ORDERED_DICT and not arguments:
            self._stack.append({})
        elif target == _TENSOR and len(arguments) >= 4:
            storage, offset, shape, stride = arguments[:4]
            self._stack.append(
                StoredTensor(
                    self._a(Storage, storage),
                    self._a(int, offset),
                    self._sizes(shape),
                    self._sizes(stride),
                )
            )
        elif target == _PARAMETER and arguments:
            self._stack.append(self._a(StoredTensor, arguments[0]))
        else:
            self._refuse_call(function, arguments)

    def _push_name(self, module: str, name: str) -> None:
        if (module, name) not in _CALLABLE and not (module == "torch" and name in STORAGE_DTYPES):
            raise UnsupportedAdapterError(
                f"the pickle names {_short(f'{module}.{name}')}, which a file of tensors does not "
                "need; it is not run",
                where=self._where,
                hint=f"do not load this file with torch unless you trust it; if you do, {_SAFE}",
            )
        self._stack.append(_Name(module, name))

    def _refuse_call(self, function: Any, arguments: tuple[Any, ...]) -> NoReturn:
        called = str(function) if isinstance(function, _Name) else "what is no function"
        raise UnsupportedAdapterError(
            f"the pickle calls {called} with {len(arguments)} arguments, which a file of tensors "
            "does not do; it is not run",
            where=self._where,
            hint=_SAFE,
        )

    def _since_mark(self) -> list[Any]:
        for at in range(len(self._stack) - 1, -1, -1):
            if self._stack[at] is _Mark:
                values = self._stack[at + 1 :]
                del self._stack[at:]
                return values
        raise ValueError("no mark is on the stack")

    def _sizes(self, value: Any) -> tuple[int, ...]:
        if len(self._a(tuple, value)) > _MAX_AXES:
            raise ValueError(f"a tensor has {len(value)} axes, expected at most {_MAX_AXES}")
        return tuple(self._a(int, size) for size in value)

    def _key(self, value: Any) -> str | int:
        # a tuple that holds another one twice, and so on, takes exponential time to hash
        return value if type(value) is int else str(self._a(str, value))

    @staticmethod
    def _a(kind: type[Any], value: Any) -> Any:
        if type(value) is not kind:
            raise ValueError(f"got a {type(value).__name__}, expected a {kind.__name__}")
        return value


_IGNORED = frozenset({"PROTO", "FRAME"})
_LITERALS = frozenset(
    {
        "BINFLOAT",
        "BININT",
        "BININT1",
        "BININT2",
        "BINUNICODE",
        "LONG1",
        "SHORT_BINUNICODE",
    }
)
_CONSTANTS: Mapping[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NEW: Mapping[str, type[Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_HANDLERS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "BINGET": _Machine.get,
    "BINPERSID": _Machine.persistent,
    "BINPUT": _Machine.put,
    "BUILD": _Machine.build,
    "GLOBAL": _Machine.name,
    "LONG_BINGET": _Machine.get,
    "LONG_BINPUT": _Machine.put,
    "MARK": _Machine.mark,
    "MEMOIZE": _Machine.put,
    "REDUCE": _Machine.call,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "STACK_GLOBAL": _Machine.name_from_stack,
    "TUPLE": _Machine.tuple_from_mark,
}


def _short(value: object) -> str:
    """What a hostile pickle says can be long, or hold itself many times over."""
    if isinstance(value, (dict, list, tuple)):
        return f"a {type(value).__name__} of {len(value)} values"
    text = str(value) if isinstance(value, Exception) else repr(value)
    return cut(text, most=80)
