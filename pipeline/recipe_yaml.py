"""YAML 1.2 as plain values, with the line of every key.

Only the core types exist: `no`, `on` and dates are text, and tags are refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, StringMark, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from pipeline.errors import InputError
from pipeline.recipe_schema import KeyPath

CORE = "tag:yaml.org,2002:"
TEXT_TAGS = (CORE + "str", CORE + "timestamp")
CONVERTED_TAGS = tuple(CORE + name for name in ("null", "bool", "int", "float"))
MOST_VALUES = 100_000

HINTS = {
    "mapping values are not allowed": 'put text that contains ": " in quotes, and indent the keys '
    "of one section alike",
    "cannot start any token": "indent with spaces, and put text that starts with a sign in quotes",
    "expected ',' or": "a list needs its closing `]`, and a section in braces its `}`",
    "could not find expected ':'": "every key needs a colon and a space: `key: value`",
    "expected <block end>": "keys of one section must be indented alike",
    "but found another document": "a recipe is one document: remove the `---` between",
    "undefined alias": 'put text that starts with "*" in quotes',
}


@dataclass(frozen=True)
class Document:
    """Plain values of a YAML text, and where each key and list item stands (line, column)."""

    value: Any
    positions: dict[KeyPath, tuple[int, int]] = field(default_factory=dict)


def read_yaml(text: str, where: str) -> Document:
    """Parse one YAML 1.2 document.

    Args:
        text: the document.
        where: name of the file or option, for errors.

    Raises:
        InputError: with line and column, if the text is not YAML of the core types.
    """
    yaml = YAML(typ="safe", pure=True)
    try:
        root = yaml.compose(text)
        reader = _Reader(yaml, where)
        value = None if root is None else reader.convert(root, ())
    except MarkedYAMLError as error:
        problem = error.problem or error.context or "this is not YAML"
        raise _error(problem, where, error.problem_mark or error.context_mark) from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(
            f"not a text file: character {error.character!r} is not allowed",
            where=f"{where}:{line}",
        ) from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"this is not YAML that can be read: {error}", where=where) from error
    return Document(value, reader.positions)


class _Reader:
    """Converts nodes, which know their places, to plain values."""

    def __init__(self, yaml: YAML, where: str) -> None:
        self.yaml = yaml
        self.where = where
        self.positions: dict[KeyPath, tuple[int, int]] = {}
        self.above: list[Node] = []

    def convert(self, node: Node, path: KeyPath) -> Any:
        self.positions.setdefault(path, _place(node.start_mark))
        # Aliases make a tree of few characters large, or endless.
        if node in self.above or len(self.positions) > MOST_VALUES:
            raise _error("this alias repeats too much", self.where, node.start_mark)
        if isinstance(node, ScalarNode):
            return self._scalar(node)
        self.above.append(node)
        value: Any
        if isinstance(node, MappingNode) and node.tag == CORE + "map":
            value = self._mapping(node, path)
        elif isinstance(node, SequenceNode) and node.tag == CORE + "seq":
            value = [self.convert(item, (*path, index)) for index, item in enumerate(node.value)]
        else:
            raise self._tag_refused(node)
        self.above.pop()
        return value

    def _mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                raise _error("a key must be a word", self.where, key_node.start_mark)
            key = str(key_node.value)
            if key in values:
                first = self.positions[(*path, key)][0]
                raise _error(
                    f"the key `{key}` stands here a second time (first in line {first})",
                    self.where,
                    key_node.start_mark,
                )
            self.positions[(*path, key)] = _place(key_node.start_mark)
            values[key] = self.convert(value_node, (*path, key))
        return values

    def _scalar(self, node: ScalarNode) -> Any:
        if node.tag in TEXT_TAGS:
            return str(node.value)
        if node.tag not in CONVERTED_TAGS:
            raise self._tag_refused(node)
        value = self.yaml.constructor.construct_object(node)
        if isinstance(value, float) and not math.isfinite(value):
            raise _error("a number must be finite", self.where, node.start_mark)
        return value

    def _tag_refused(self, node: Node) -> InputError:
        return _error(f"tags such as {node.tag} have no meaning here", self.where, node.start_mark)


def _place(mark: StringMark) -> tuple[int, int]:
    return mark.line + 1, mark.column + 1


def _error(problem: str, where: str, mark: StringMark | None) -> InputError:
    place = "" if mark is None else ":{}:{}".format(*_place(mark))
    remedy = next((hint for words, hint in HINTS.items() if words in problem), "")
    return InputError(problem, where=f"{where}{place}", remedy=remedy)
