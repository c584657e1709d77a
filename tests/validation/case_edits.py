"""Edits of a case: one small change of a file, in the terms of its format.

{file: pack/pack.json, set: [[targets, 0, files, {path: a.json}, size], 3]}

A path goes through objects by key, through lists by index or by what an item holds, and through
protobuf messages like through objects.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import yaml
from safetensors.numpy import load, save

Edit = Mapping[str, Any]
Content = Callable[[Any], bytes]


def apply_edit(folder: Path, edit: Edit, content_of: Content) -> None:
    """Apply one edit below `folder`; what it speaks of has to be there."""
    known = [name for name in _OF_TREES if name in edit]
    if known:
        _OF_TREES[known[0]](folder, edit[known[0]])
        return
    rest = dict(edit)
    path = folder / rest.pop("file")
    ((name, value),) = rest.items()
    content = path.read_bytes()
    if name in _OF_BYTES:
        changed = _OF_BYTES[name](content, value)
    elif name in _OF_VALUES:
        changed = _in_document(path, content, name, value)
    elif name == "tensors":
        changed = _tensors(content, value, content_of)
    else:
        changed = _adapter(path, value, content_of)
    path.unlink()
    path.write_bytes(changed)


def _remove(folder: Path, name: str) -> None:
    (folder / name).unlink()


def _copy(folder: Path, names: list[str]) -> None:
    source, target = (folder / name for name in names)
    target.unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


def _move(folder: Path, names: list[str]) -> None:
    (folder / names[1]).parent.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).rename(folder / names[1])


def _swap(folder: Path, names: list[str]) -> None:
    first, second = (folder / name for name in names)
    waiting = first.with_name("swapped away")
    first.rename(waiting)
    second.rename(first)
    waiting.rename(second)


def _link(folder: Path, names: list[str]) -> None:
    place, target = names
    (folder / place).symlink_to(target)


def _pipe(folder: Path, name: str) -> None:
    os.mkfifo(folder / name)


def _deep(folder: Path, value: tuple[str, int]) -> None:
    """So many folders of one name in each other."""
    name, count = value
    folder.joinpath(*[name] * count).mkdir(parents=True)


_OF_TREES: Mapping[str, Callable[[Path, Any], None]] = {
    "remove": _remove,
    "copy": _copy,
    "move": _move,
    "swap": _swap,
    "link": _link,
    "pipe": _pipe,
    "deep": _deep,
}


def _replace(content: bytes, texts: list[str]) -> bytes:
    old, new = (text.encode("utf-8") for text in texts)
    assert old in content, texts[0]
    return content.replace(old, new, 1)


def _flip(content: bytes, offset: int) -> bytes:
    changed = bytearray(content)
    changed[offset] ^= 0x40
    return bytes(changed)


_OF_BYTES: Mapping[str, Callable[[bytes, Any], bytes]] = {
    "replace": _replace,
    "flip": _flip,
    "truncate": lambda content, size: content[:size],
    "append": lambda content, text: content + text.encode("utf-8"),
    "header": lambda content, size: struct.pack("<Q", size) + content[8:],
}


def _set(document: Any, value: list[Any]) -> None:
    *way, last = value[0]
    parent = _at(document, way)
    if isinstance(parent, MutableMapping):
        parent[last] = value[1]
    elif isinstance(parent, list):
        parent[_index(parent, last)] = value[1]
    elif isinstance(last, int):
        parent[last] = value[1]
    else:
        setattr(parent, last, value[1].encode() if _is_bytes(parent, last) else value[1])


def _is_bytes(message: Any, field: str) -> bool:
    return isinstance(getattr(message, field), bytes)


def _delete(document: Any, path: list[Any]) -> None:
    *way, last = path
    parent = _at(document, way)
    if isinstance(parent, MutableMapping):
        del parent[last]
    elif hasattr(parent, "DESCRIPTOR"):
        parent.ClearField(last)
    else:
        del parent[_index(parent, last)]


def _add(document: Any, value: list[Any]) -> None:
    found = _at(document, value[0])
    if hasattr(found, "add"):
        found.add(**value[1])
    else:
        found.append(value[1])


def _rename(document: Any, value: list[Any]) -> None:
    *way, last = value[0]
    parent = _at(document, way)
    items = [(value[1] if key == last else key, item) for key, item in parent.items()]
    parent.clear()
    parent.update(items)


_OF_VALUES: Mapping[str, Callable[[Any, Any], None]] = {
    "set": _set,
    "delete": _delete,
    "add": _add,
    "rename": _rename,
}


def _at(document: Any, path: list[Any]) -> Any:
    for step in path:
        if isinstance(document, MutableMapping):
            document = document[step]
        elif isinstance(step, str):
            document = getattr(document, step)
        else:
            document = document[_index(document, step)]
    return document


def _index(items: Any, step: Any) -> int:
    """An index, or the index of the first item that holds what `step` says."""
    if isinstance(step, int):
        return step
    return next(
        index
        for index, item in enumerate(items)
        if all(_held(item, key) == value for key, value in step.items())
    )


def _held(item: Any, key: str) -> Any:
    return item.get(key) if isinstance(item, Mapping) else getattr(item, key)


def _in_document(path: Path, content: bytes, name: str, value: Any) -> bytes:
    if path.suffix == ".onnx":
        model = onnx.ModelProto()
        model.ParseFromString(content)
        _OF_VALUES[name](model, value)
        return bytes(model.SerializeToString(deterministic=True))
    if path.suffix == ".yaml":
        document = yaml.safe_load(content)
        _OF_VALUES[name](document, value)
        return yaml.safe_dump(document, sort_keys=False).encode("utf-8")
    document = json.loads(content)
    _OF_VALUES[name](document, value)
    return (json.dumps(document, indent=1) + "\n").encode("utf-8")


def _tensors(content: bytes, changes: Mapping[str, Any], content_of: Content) -> bytes:
    tensors = load(content)
    _change(tensors, changes, content_of)
    return save(tensors)


def _adapter(path: Path, edit: Mapping[str, Any], content_of: Content) -> bytes:
    """An adapter file, written again by the engine's own writer."""
    opened = onnxruntime.AdapterFormat.read_adapter(str(path))
    tensors = {name: value.numpy().copy() for name, value in opened.get_parameters().items()}
    _change(tensors, edit.get("tensors", {}), content_of)
    written = onnxruntime.AdapterFormat()
    written.set_adapter_version(opened.get_adapter_version())
    written.set_model_version(edit.get("model_version", opened.get_model_version()))
    written.set_parameters(
        {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(np.array(values, order="C"))
            for name, values in tensors.items()
        }
    )
    beside = path.with_name("written again")
    written.export_adapter(str(beside))
    content = beside.read_bytes()
    beside.unlink()
    return content


def _change(
    tensors: MutableMapping[str, Any], changes: Mapping[str, Any], content_of: Content
) -> None:
    """null takes a tensor away, {first: value} changes one number, anything else replaces it."""
    for name, change in changes.items():
        if change is None:
            del tensors[name]
        elif "first" in change:
            tensors[name].reshape(-1)[0] = change["first"]
        elif "named" in change:
            tensors[change["named"]] = tensors.pop(name)
        elif "dtype" in change and "shape" not in change:
            stand_in = load(content_of({"safetensors": {"x": {**change, "shape": [1]}}}))["x"]
            tensors[name] = tensors[name].astype(stand_in.dtype)
        elif change.get("transposed"):
            tensors[name] = np.ascontiguousarray(tensors[name].T)
        else:
            tensors[name] = load(content_of({"safetensors": {"x": change}}))["x"]
