"""Reads one profile file and remembers the line and column of everything in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.events import CollectionEndEvent, CollectionStartEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import Reader, ReaderError

from dask_cloudvm.errors import Problem, ProfileError

Path_ = tuple[str, ...]
Pair = tuple[ScalarNode, Node]
LARGEST = 1 << 20  # bytes; the largest sensible profile is a few KiB
MOST_NODES = 100_000  # after anchors are expanded, so that a few lines cannot fill the memory
DEEPEST = 50  # collections in collections

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_COLLECTIONS = {f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "set", "omap", "pairs")}
_MERGE, _TIMESTAMP = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:timestamp"


def read(file: str | Path) -> tuple[dict[str, Any], dict[Path_, str]]:
    """The mapping in a YAML or JSON file, and ``path -> "file:line:column"`` for each key and list item.

    Raises :class:`ProfileError` where the file is missing, unreadable, not text, too large, not YAML, has a duplicate
    key, or does not hold a mapping.
    """
    try:
        raw = load(file)
    except OSError as error:
        raise _wrong(str(file), f"cannot read it: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:  # a NUL byte in the name
        raise _wrong(str(file), f"cannot read it: {error}") from None
    return parse(decode(raw, str(file)), str(file))


def load(file: str | Path) -> bytes:
    """What is in a file, or enough of it to know that it is too large."""
    with open(file, "rb") as stream:
        return stream.read(LARGEST + 1)


def decode(raw: bytes, name: str) -> str:
    """The text of a file. Raises :class:`ProfileError` where it is too large or not UTF-8."""
    if len(raw) > LARGEST:
        raise _wrong(name, f"it is larger than {LARGEST >> 20} MiB, which no profile is")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8-sig")
        raise _wrong(_after(before, name), "it is not UTF-8 text; a profile is a YAML file") from None


def parse(text: str, name: str) -> tuple[dict[str, Any], dict[Path_, str]]:
    """Like :func:`read`, for text that is already here."""
    tree, where, duplicates = value(text, name)
    if duplicates:
        raise ProfileError(problem for _, problem in duplicates)
    if tree is None:
        raise _wrong(f"{name}:1:1", "it is empty; write at least 'cloudprovider: {local: {}}'")
    if not isinstance(tree, dict):
        kind = "a list" if isinstance(tree, list) else "one value"
        raise _wrong(f"{name}:1:1", f"it holds {kind}, not a mapping with a cloudprovider section")
    return tree, where


def value(text: str, name: str) -> tuple[Any, dict[Path_, str], list[tuple[Path_, Problem]]]:
    """Whatever a YAML text holds, the positions in it, and the path and problem of each key that is there twice."""
    try:
        loader = _Loader(text)
        try:
            _refuse_deep(text)
            reader = _Reader(loader, name)
            node = loader.get_single_node()
            return None if node is None else reader.value(node, ()), reader.where, reader.duplicates
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise _wrong(where, f"not valid YAML: {_reason(error, text)}") from None
    except ReaderError as error:
        bad = Reader.NON_PRINTABLE.search(text)
        where = _after(text[: bad.start()], name) if bad else name
        raise _wrong(where, f"not valid YAML: {error.reason}") from None
    except RecursionError:
        raise _wrong(name, "not valid YAML: nested too deeply") from None


def _refuse_deep(text: str) -> None:
    """Raises before composing, where libyaml would recurse until the process ends by a segmentation fault."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > DEEPEST:
            mark: Any = event.start_mark
            raise ConstructorError(None, None, "nested too deeply", mark)


def _reason(error: yaml.MarkedYAMLError, text: str) -> str:
    begins = f" that begins on line {error.context_mark.line + 1}," if error.context_mark else ""
    reason = f"{error.context}{begins} {error.problem}" if error.context else str(error.problem)
    mark = error.problem_mark
    lines = text.splitlines()
    if mark and mark.line < len(lines) and "\t" in lines[mark.line][: mark.column + 1]:
        reason += " (indent by spaces, not by tabs)"
    return reason


def _after(before: str, name: str) -> str:
    """The position that follows the text ``before``."""
    return f"{name}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"


def _wrong(where: str, what: str) -> ProfileError:
    return ProfileError([Problem(where, "", what)])


class _Reader:
    """Walks the node tree once: plain values out, positions and duplicate keys noted on the way."""

    def __init__(self, loader: Any, name: str) -> None:
        self.loader, self.name = loader, name
        self.where: dict[Path_, str] = {}
        self.duplicates: list[tuple[Path_, Problem]] = []
        self.nodes = 0

    def value(self, node: Node, path: Path_) -> Any:
        self.count(1, node)
        if len(path) > DEEPEST:  # an anchor that contains itself
            raise ConstructorError(None, None, "nested too deeply", node.start_mark)
        if not isinstance(node, ScalarNode) and node.tag not in _COLLECTIONS:
            raise ConstructorError(None, None, f"the tag {node.tag!r} has no place in a profile", node.start_mark)
        if isinstance(node, MappingNode):
            return self.mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self.item(child, (*path, str(i))) for i, child in enumerate(node.value)]
        return self.scalar(node)

    def count(self, more: int, node: Node) -> None:
        self.nodes += more
        if self.nodes > MOST_NODES:
            raise ConstructorError(None, None, "too many values once anchors are expanded", node.start_mark)

    def scalar(self, node: Node) -> Any:
        if node.tag == _TIMESTAMP:  # no option is a date; version: 2026-01-01 is text
            return node.value
        try:
            return self.loader.construct_object(node)
        except (ValueError, LookupError, AttributeError):  # such as !!int "" or 0x_
            raise ConstructorError(None, None, f"{node.value!r} is not what its tag says", node.start_mark) from None

    def item(self, node: Node, path: Path_) -> Any:
        self.where[path] = self.position(node)
        return self.value(node, path)

    def mapping(self, node: MappingNode, path: Path_) -> dict[str, Any]:
        self.find_duplicates(node, path)
        found: dict[str, Any] = {}
        for key, (key_node, value_node) in self.pairs(node).items():
            self.where[(*path, key)] = self.position(key_node)
            found[key] = self.value(value_node, (*path, key))
        return found

    def pairs(self, node: Node) -> dict[str, Pair]:
        """The keys of a mapping after those that ``<<`` merges in, which it overrides."""
        if not isinstance(node, MappingNode):
            raise ConstructorError(None, None, "<< needs a mapping or a list of mappings", node.start_mark)
        self.count(1, node)
        merged: dict[str, Pair] = {}
        for sources in (value for key, value in node.value if key.tag == _MERGE):
            for source in reversed(sources.value if isinstance(sources, SequenceNode) else [sources]):
                merged |= self.pairs(source)
        merged |= {self.key(key): (key, value) for key, value in node.value if key.tag != _MERGE}
        self.count(len(merged), node)
        return merged

    def find_duplicates(self, node: MappingNode, path: Path_) -> None:
        seen: dict[str, Pair] = {}
        for key_node, value_node in (pair for pair in node.value if pair[0].tag != _MERGE):
            key = self.key(key_node)
            first, before = seen.get(key, (key_node, None))
            if before is not None:
                what = f"this key is here twice, first on line {first.start_mark.line + 1}"
                inner = (*path, key)
                self.duplicates.append((inner, Problem(self.position(key_node), ".".join(inner[1:] or inner), what)))
                self.value(before, inner)  # which may have duplicates of its own
            seen[key] = (first, value_node)

    def key(self, node: Node) -> str:
        if not isinstance(node, ScalarNode):
            raise ConstructorError(None, None, "a key must be plain text", node.start_mark)
        return str(node.value)

    def position(self, node: Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
