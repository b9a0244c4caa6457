"""The recipe's JSON Schema, for editors and for explaining what a key expects.

`python -m pipeline.recipe_schema` prints the schema that is committed as
`recipes/recipe.schema.json`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from pipeline.recipe import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"
NAMED_PATTERNS = {
    r"^[a-z0-9][a-z0-9._-]*$": "lower-case letters, digits, `.`, `_` and `-`",
    r"^[^/\s]+/[^/\s]+$": "`organisation/name`",
    r"^[0-9]+(\.[0-9]+)?[KMG]i?B$": "a size such as `4GB` or `500MiB`",
}
LONGEST_SHOWN = 60

Node = dict[str, Any]
KeyPath = tuple[str | int, ...]


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a recipe."""
    schema = Recipe.model_json_schema()
    return {
        "$schema": DIALECT,
        "title": "Recipe of unlearn-pipeline",
        "description": schema.pop("description"),
        **{key: value for key, value in schema.items() if key != "title"},
    }


def node_at(path: Sequence[str | int]) -> Node | None:
    """Return the schema of what stands at `path`, or None if no such key exists."""
    node = _resolved(_schema())
    for key in path:
        child = node.get("items") if isinstance(key, int) else properties(node).get(key)
        if child is None:
            return None
        node = _resolved(child)
    return node


def branches(node: Node) -> list[Node]:
    """Return the alternatives of a section that has several, or the section itself."""
    return [_resolved(branch) for branch in node["oneOf"]] if "oneOf" in node else [node]


def properties(node: Node) -> dict[str, Node]:
    """Return the keys of a section with their schemas; those of all its alternatives."""
    return {
        key: child
        for branch in branches(node)
        for key, child in branch.get("properties", {}).items()
    }


def key_that_ends_in(words_of_key: Sequence[str]) -> str | None:
    """Return the first whole key whose last words these are, such as `select.ffn.fraction`."""
    level: list[tuple[str, ...]] = [()]
    while level:
        level = [(*path, key) for path in level for key in properties(node_at(path) or {})]
        for path in level:
            if path[-len(words_of_key) :] == tuple(words_of_key):
                return ".".join(path)
    return None


def literals(node: Node) -> list[str]:
    """Return the words that a value is chosen from, if it is."""
    return [str(option) for option in node.get("enum", [node["const"]] if "const" in node else [])]


def expected(node: Node) -> str:
    """Say in words what is expected of a value."""
    if options := literals(node):
        return " or ".join(filter(None, [words(options[:-1]), options[-1]]))
    kind = node.get("type")
    if kind in ("number", "integer"):
        bounds = [
            f"{sign} {node[key]:g}"
            for key, sign in (
                ("exclusiveMinimum", ">"),
                ("minimum", "≥"),
                ("exclusiveMaximum", "<"),
                ("maximum", "≤"),
            )
            if key in node
        ]
        name = "a number" if kind == "number" else "a whole number"
        return " ".join([name, " and ".join(bounds)]).strip()
    if kind == "string":
        if "pattern" in node:
            pattern = node["pattern"]
            return NAMED_PATTERNS.get(pattern, f"text that matches {pattern}")
        return "text"
    if kind == "boolean":
        return "true or false"
    if kind == "array":
        return "a list of at least one item" if node.get("minItems") else "a list"
    return f"a section with {'one of ' if 'oneOf' in node else ''}the keys {_keys(node)}"


def shown(value: object) -> str:
    """Show a value as it would stand in the recipe, shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return f"a section with {words(value)}" if value else "an empty section"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}" if value else "an empty list"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def words(options: Iterable[object]) -> str:
    """Join words for a sentence."""
    return ", ".join(str(option) for option in options)


def nearest(word: object, options: Iterable[str]) -> str:
    """Return "; did you mean x?" for the option that is nearest to `word`, or nothing."""
    by_lower = {option.lower(): option for option in options}
    found = difflib.get_close_matches(str(word).lower(), list(by_lower), n=1, cutoff=0.5)
    return f"; did you mean `{by_lower[found[0]]}`?" if found else ""


def unknown_key(key: object, valid: Iterable[str]) -> str:
    """Say that a key is unknown, which one is nearest, and which are valid."""
    names = list(valid)
    near = nearest(key, names)
    return f"unknown key `{key}`{near or ';'} valid here: {words(names)}"


@cache
def _schema() -> Node:
    return json_schema()


def _resolved(node: Node) -> Node:
    """Follow references, and leave out the null of what may be absent."""
    if "anyOf" in node:
        node = next(branch for branch in node["anyOf"] if branch.get("type") != "null")
    if "$ref" in node:
        node = {**_schema()["$defs"][node["$ref"].rsplit("/", 1)[-1]], **node}
        del node["$ref"]
    return node


def _keys(node: Node) -> str:
    if "oneOf" not in node:
        return words(properties(node))
    return words(" and ".join(branch["required"]) for branch in branches(node))


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
