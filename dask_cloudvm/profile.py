"""Reads one profile file and remembers the line and column of everything in it."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from dask_cloudvm.errors import Problem, ProfileError

Path_ = tuple[str, ...]
LARGEST = 1 << 20  # bytes; the largest sensible profile is a few KiB
MOST_NODES = 100_000  # after anchors are expanded, so that a few lines cannot fill the memory

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(file: str | Path) -> tuple[dict[str, Any], dict[Path_, str]]:
    """The mapping in a YAML or JSON file, and ``path -> "file:line:column"`` for each key and list item.

    Raises :class:`ProfileError` where the file is missing, unreadable, not text, too large, not YAML, has a duplicate
    key, or does not hold a mapping.
    """
    return parse(_text(str(file)), str(file))


def _text(file: str) -> str:
    try:
        with open(file, "rb") as stream:
            raw = stream.read(LARGEST + 1)
    except OSError as error:
        raise _wrong(file, f"cannot read it: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:  # a NUL byte in the name
        raise _wrong(file, f"cannot read it: {error}") from None
    if len(raw) > LARGEST:
        raise _wrong(file, f"it is larger than {LARGEST >> 20} MiB, which no profile is")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _wrong(file, f"it is not UTF-8 text (byte {error.start}); a profile is a YAML file") from None


def parse(text: str, name: str) -> tuple[dict[str, Any], dict[Path_, str]]:
    """Like :func:`read`, for text that is already here."""
    try:
        loader = _Loader(text)
        try:
            reader = _Reader(loader, name)
            tree = reader.value(node, ()) if (node := loader.get_single_node()) is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise _wrong(where, f"not valid YAML: {_reason(error, text)}") from None
    except yaml.YAMLError as error:
        raise _wrong(name, f"not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise _wrong(name, "not valid YAML: nested too deeply") from None
    except ValueError as error:  # such as the date 2026-13-45
        raise _wrong(name, f"not valid YAML: {error}") from None
    if reader.problems:
        raise ProfileError(reader.problems)
    if tree is None:
        raise _wrong(name, "it is empty; write at least 'cloudprovider: {local: {}}'")
    if not isinstance(tree, dict):
        raise _wrong(f"{name}:1:1", f"it holds a {type(tree).__name__}, not a mapping with a cloudprovider section")
    return tree, reader.where


def _reason(error: yaml.MarkedYAMLError, text: str) -> str:
    reason = " ".join(part for part in (error.context, error.problem) if part)
    mark = error.problem_mark
    lines = text.splitlines()
    if mark and mark.line < len(lines) and "\t" in lines[mark.line][: mark.column + 1]:
        reason += " (indent by spaces, not by tabs)"
    return reason


def _wrong(where: str, what: str) -> ProfileError:
    return ProfileError([Problem(where, "", what)])


class _Reader:
    """Walks the node tree once: plain values out, positions and duplicate keys noted on the way."""

    def __init__(self, loader: Any, name: str) -> None:
        self.loader, self.name = loader, name
        self.where: dict[Path_, str] = {}
        self.problems: list[Problem] = []
        self.nodes = 0

    def value(self, node: Node, path: Path_) -> Any:
        self.nodes += 1
        if self.nodes > MOST_NODES:
            raise ConstructorError(None, None, "too many values once anchors are expanded", node.start_mark)
        if isinstance(node, MappingNode):
            return self.mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self.item(child, (*path, str(i))) for i, child in enumerate(node.value)]
        assert isinstance(node, ScalarNode)
        return self.loader.construct_object(node)

    def item(self, node: Node, path: Path_) -> Any:
        self.where[path] = self.position(node)
        return self.value(node, path)

    def mapping(self, node: MappingNode, path: Path_) -> dict[str, Any]:
        self.duplicates(node, path)
        self.loader.flatten_mapping(node)  # << merges; what stands in the mapping itself comes later and wins
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self.key(key_node)
            self.where[(*path, key)] = self.position(key_node)
            found[key] = self.value(value_node, (*path, key))
        return found

    def duplicates(self, node: MappingNode, path: Path_) -> None:
        seen: dict[Hashable, Node] = {}
        for key_node, _ in node.value:
            key = (key_node.tag, str(key_node.value))
            if key in seen and key_node.tag != "tag:yaml.org,2002:merge":
                first = seen[key].start_mark.line + 1
                what = f"the key {key_node.value!r} is here twice, first on line {first}"
                self.problems.append(Problem(self.position(key_node), ".".join(path), what))
            seen.setdefault(key, key_node)

    def key(self, node: Node) -> str:
        if not isinstance(node, ScalarNode):
            raise ConstructorError(None, None, "a key must be plain text", node.start_mark)
        return str(node.value)

    def position(self, node: Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
