"""YAML built from parser events: no tags, no duplicate keys, no alias bombs, one document.

The values are made here rather than by PyYAML's constructors, which follow YAML 1.1, do not see
whether a tag was written or guessed, and recurse.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    NodeEvent,
)

from lora_quant.config.document_text import decode
from lora_quant.config.located import LocatedDocument, Position, path_text
from lora_quant.config.plain_values import MAX_DEPTH, PathParts, too_deep
from lora_quant.config.yaml_scalars import resolve
from lora_quant.errors import ConfigError, Where

MAX_ALIASED_NODES: Final = 10_000
"""How many nodes all aliases of a document may repeat, counted as if written out."""

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_located(text: str | bytes, *, source: Path | None) -> LocatedDocument:
    """The value of a YAML text with positions; ConfigError with line and column if refused."""
    text = decode(text, source=source)
    builder = _Builder(source)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(
            f"the text is not YAML: {error.problem or error.context}",
            where=Where(file=source)
            if mark is None
            else Where(file=source, line=mark.line + 1, column=mark.column + 1),
            hint="check indentation, quotes and brackets around this place",
        ) from None
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an escape beyond Unicode
        raise ConfigError(
            f"the text is not YAML: {' '.join(str(error).split())}",
            where=Where(file=source),
            hint="YAML text holds printable characters only; write others as escapes",
        ) from None
    return builder.finish()


@dataclass
class _Node:
    """A finished value; `nodes` and `height` are its size if an alias repeats it."""

    value: Any
    nodes: int = 1
    height: int = 0


@dataclass
class _Open:
    """A list or object whose end has not been seen; `key` is set between a key and its value."""

    value: list[Any] | dict[str, Any]
    anchor: str | None
    path: PathParts
    key: str | None = None
    nodes: int = 1
    height: int = 1


@dataclass
class _Builder:
    source: Path | None
    stack: list[_Open] = field(default_factory=list)
    anchors: dict[str, _Node] = field(default_factory=dict)
    positions: dict[PathParts, Position] = field(default_factory=dict)
    aliased_nodes: int = 0
    documents: int = 0
    root: _Node | None = None

    def take(self, event: Event) -> None:
        """Add one parser event."""
        if isinstance(event, DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                raise self._error(
                    event, "the file holds several YAML documents", "keep one; remove the '---'"
                )
        elif isinstance(event, CollectionEndEvent):
            self._close()
        elif isinstance(event, NodeEvent):
            self._refuse_tag(event)
            path = self._locate(event)
            if isinstance(event, CollectionStartEvent):
                self._open(event, path)
            else:
                node = self._alias(event) if isinstance(event, AliasEvent) else self._scalar(event)
                self._place(node, event)

    def finish(self) -> LocatedDocument:
        """The whole document, after the last event."""
        if self.root is None:
            raise ConfigError(
                "the document is empty",
                where=Where(file=self.source),
                hint="an empty object is written {}, an empty list []",
            )
        return LocatedDocument(self.root.value, self.positions, self.source)

    def _locate(self, event: Event) -> PathParts:
        """The path of the node that begins here; a key is located when it is placed."""
        if not self.stack:
            path: PathParts = ()
        else:
            parent = self.stack[-1]
            if isinstance(parent.value, list):
                path = (*parent.path, len(parent.value))
            elif parent.key is None:
                return parent.path
            else:
                return (*parent.path, parent.key)
        self.positions[path] = _position(event)
        return path

    def _open(self, event: Any, path: PathParts) -> None:
        parent = self.stack[-1] if self.stack else None
        if parent is not None and isinstance(parent.value, dict) and parent.key is None:
            raise self._error(
                event, "a list or an object cannot be a key", "a key is text; quote the braces"
            )
        if len(self.stack) >= MAX_DEPTH:
            raise self._error(event, f"the document is {too_deep()}", "flatten it", ())
        value: list[Any] | dict[str, Any] = {} if isinstance(event, MappingStartEvent) else []
        if event.anchor is not None:
            self.anchors.pop(event.anchor, None)
        self.stack.append(_Open(value, event.anchor, path))

    def _close(self) -> None:
        done = self.stack.pop()
        node = _Node(done.value, done.nodes, done.height)
        if done.anchor is not None:
            self.anchors[done.anchor] = node
        self._attach(node)

    def _scalar(self, event: Any) -> _Node:
        value: Any = event.value
        # A plain scalar is the one that may be taken for something else than text.
        if event.implicit[0]:
            try:
                value = resolve(event.value)
            except ValueError as error:
                raise self._error(
                    event, str(error), "write a finite number, or put text in quotes"
                ) from None
        node = _Node(value)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def _alias(self, event: AliasEvent) -> _Node:
        node = self.anchors.get(event.anchor or "")
        if node is None:
            if any(part.anchor == event.anchor for part in self.stack):
                problem = f"the alias *{event.anchor} stands inside the value that it repeats"
            else:
                problem = f"the alias *{event.anchor} names no anchor above it"
            raise self._error(event, problem, "write the value out")
        self.aliased_nodes += node.nodes
        if self.aliased_nodes > MAX_ALIASED_NODES:
            raise self._error(
                event,
                f"the aliases repeat more than {MAX_ALIASED_NODES} values",
                "write the document without aliases",
            )
        if len(self.stack) + node.height > MAX_DEPTH:
            raise self._error(event, f"the document is {too_deep()}", "flatten it", ())
        return _Node(_copy(node.value), node.nodes, node.height)

    def _place(self, node: _Node, event: Event) -> None:
        parent = self.stack[-1] if self.stack else None
        if parent is None or isinstance(parent.value, list) or parent.key is not None:
            self._attach(node)
            return
        key = node.value
        if not isinstance(key, str):
            raise self._error(event, f"the key {key!r} is not text", "put the key in quotes")
        path = (*parent.path, key)
        if key in parent.value:
            raise self._error(
                event,
                f"the key {key!r} appears twice in one object, "
                f"first on line {self.positions[path][0]}",
                "remove or rename one of them",
                path,
            )
        parent.key = key
        self.positions[path] = _position(event)

    def _attach(self, node: _Node) -> None:
        if not self.stack:
            self.root = node
            return
        parent = self.stack[-1]
        parent.nodes += node.nodes
        parent.height = max(parent.height, node.height + 1)
        if isinstance(parent.value, list):
            parent.value.append(node.value)
        elif parent.key is not None:
            parent.value[parent.key] = node.value
            parent.key = None

    def _refuse_tag(self, event: Any) -> None:
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise self._error(
                event, f"the YAML tag {tag!r} is not accepted", "remove the tag; quote plain text"
            )

    def _error(
        self, event: Event, problem: str, hint: str, path: PathParts | None = None
    ) -> ConfigError:
        line, column = _position(event)
        if path is None:
            path = self.stack[-1].path if self.stack else ()
        name = path_text(path) or None
        where = Where(file=self.source, line=line, column=column, field=name)
        return ConfigError(problem, where=where, hint=hint)


def _position(event: Any) -> Position:
    return event.start_mark.line + 1, event.start_mark.column + 1


def _copy(value: Any) -> Any:
    """A copy of a value of bounded depth, so that no two places share one list."""
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value
