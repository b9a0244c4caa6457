"""What is wrong with a recipe, one line an error: where it stands, its key, what was expected."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import InputError
from pipeline.recipe_schema import (
    KeyPath,
    Node,
    branches,
    expected,
    literals,
    nearest,
    node_at,
    properties,
    shown,
    unknown_key,
    words,
)


@dataclass
class Places:
    """Where every key of a recipe was written: in its file, or in an override.

    Args:
        file: the recipe's path, as shown to the reader.
        lines: file and line of each key; the file is another one's that the recipe extends.
        overrides: the override that set a key, and everything below it.
    """

    file: str
    lines: dict[KeyPath, tuple[str, int]]
    overrides: dict[KeyPath, str] = field(default_factory=dict)

    def of(self, path: KeyPath) -> str:
        """Return `file:line` or `--set key=value` for what stands at `path`."""
        for length in range(len(path), -1, -1):
            if found := self.overrides.get(path[:length]):
                return f"--set {found}"
            if path[:length] in self.lines:
                below = [o for key, o in self.overrides.items() if key[: len(path)] == path]
                changed = "".join(f", --set {o}" for o in below) if path else ""
                file, line = self.lines[path[:length]]
                return f"{file}:{line}{changed}"
        return self.file

    def override(self, path: KeyPath, text: str) -> None:
        """Record that `text` set what stands at `path`, and everything below it."""
        below = len(path)
        self.lines = {k: v for k, v in self.lines.items() if k == path or k[:below] != path}
        self.overrides = {k: v for k, v in self.overrides.items() if k[:below] != path}
        self.overrides[path] = text

    def order(self, path: KeyPath) -> tuple[bool, bool, int]:
        """Return what errors are sorted by: the recipe's own, their line, and overrides last."""
        known = [path[:n] for n in range(len(path) + 1) if path[:n] in self.lines]
        file, line = self.lines[known[-1]] if known else (self.file, 0)
        return self.of(path).startswith("--set"), file != self.file, line


def explain(error: ValidationError, places: Places) -> list[InputError]:
    """Return one error for each that a validation found, in the order of the file."""
    found: list[tuple[KeyPath, str]] = []
    for detail in error.errors():
        # A list whose only item is wrong is "too short" as well: that one would mislead.
        if detail["type"] == "too_short" and detail["input"]:
            continue
        if detail["type"] == "inconsistent":
            for path, text, word, known in detail["ctx"]["problems"]:
                hint = f"{nearest(word, known) or ';'} valid here: {words(known)}" if known else ""
                found.append((path, text + hint))
            continue
        path = tuple(key for key in detail["loc"] if not str(key).startswith("<"))
        found.append((path, _text(detail, path)))
    found.sort(key=lambda item: places.order(item[0]))
    return [
        InputError(f"{'.'.join(map(str, path))}: {text}" if path else text, where=places.of(path))
        for path, text in found
    ]


def _text(detail: ErrorDetails, path: KeyPath) -> str:
    """Say what is wrong at `path`, in words of recipes and not of pydantic."""
    kind, value = detail["type"], detail["input"]
    node = node_at(path)
    if kind == "extra_forbidden":
        return unknown_key(path[-1], _valid_keys(detail, path[:-1]))
    if kind == "missing":
        meaning = node.get("description", "") if node else ""
        return f"this key is missing. {meaning}".strip()
    if kind == "value_error":
        return detail["msg"].removeprefix("Value error, ")
    if node is None:
        return detail["msg"]
    if kind == "origin":
        return _origin(node, value)
    text = f"expected {expected(node)}, got {shown(value)}"
    if options := literals(node):
        return text + nearest(value, options)
    if node.get("type") == "string" and isinstance(value, int | float):
        return f"{text}; put it in quotes"
    if node.get("type") == "string" and value == "":
        return f"{text} that is empty"
    return text


def _valid_keys(detail: ErrorDetails, section: KeyPath) -> list[str]:
    """Return the keys of a section; of the chosen alternative, if it has several."""
    node = node_at(section) or {}
    chosen = next((str(key)[1:-1] for key in detail["loc"] if str(key).startswith("<")), "")
    for branch in branches(node):
        if chosen in branch.get("properties", {}):
            return list(branch["properties"])
    return list(properties(node))


def _origin(node: Node, value: Any) -> str:
    if not isinstance(value, dict):
        return f"expected {expected(node)}, got {shown(value)}"
    kinds = [branch["required"][0] for branch in branches(node)]
    named = [kind for kind in kinds if kind in value]
    if len(named) > 1:
        return f"expected only one of {', '.join(kinds)}, got {' and '.join(named)}"
    hint = next((found for key in value if (found := nearest(key, kinds))), "")
    return f"expected {expected(node)}, got {shown(value)}{hint}"
