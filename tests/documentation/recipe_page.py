"""docs/reference/recipe.md: every key of a recipe, out of its JSON Schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from documentation.markdown import GENERATED, anchor, code, table
from pipeline.recipe_schema import branches, expected, literals, node_at, properties

Node = dict[str, Any]
Path = tuple[str | int, ...]
INTRODUCTION = """\
# Every key of a recipe

{generated}

A recipe is one YAML file. [recipes.md](../recipes.md) says how to write one, `unlearn check NAME`
what is wrong with one, and `unlearn schema` prints the JSON Schema that editors read. A key that
stands nowhere here is an error. Any key can be set from the command line:
`--set select.ffn.fraction=0.2`.

**Default**: what a recipe without the key has; *required* keys have none, and with *nothing* the
key is as good as absent. A section that is left out has the defaults of its keys. `[]` in a heading
stands for each item of a list.
"""
HEADER = ("key", "type", "default", "meaning")
ALIKE = {"retain": "forget"}  # sections whose keys are those of another


def recipe_page() -> str:
    """The whole page."""
    lines = [*INTRODUCTION.format(generated=GENERATED).splitlines(), ""]
    lines += ["## Top level", "", *_keys((), node_at(()) or {})]
    for path in sections():
        lines += ["", *_section(path)]
    return "\n".join(lines) + "\n"


def sections(path: Path = ()) -> Iterator[Path]:
    """Paths of all sections in reading order; 0 stands for any item of a list."""
    for key in properties(node_at(path) or {}):
        if (inner := _section_below((*path, key))) is None:
            continue
        if inner != () and str(inner[0]) not in ALIKE:
            yield inner
            yield from sections(inner)


def _section_below(path: Path) -> Path | None:
    """The section that is the value of a key or of the items of its list, if there is one."""
    for each in (path, (*path, 0)):
        if (node := node_at(each)) is not None and (properties(node) or "oneOf" in node):
            return each
    return None


def _section(path: Path) -> list[str]:
    node = node_at(path) or {}
    depth = len([key for key in path if isinstance(key, str)])
    lines = [f"{'#' * (1 + depth)} {heading(path)}", ""]
    lines.append(node["description"])
    if "oneOf" not in node:
        return [*lines, "", *_keys(path, node)]
    for branch in branches(node):
        about = f"**{', '.join(map(code, branch['required']))}**: {branch['description']}"
        lines += ["", about, "", *_keys(path, branch)]
    return lines


def heading(path: Path) -> str:
    """A section's heading, such as `evaluate.tasks[]`, a list's items being sections."""
    also = [other for other, this in ALIKE.items() if path == (this, 0)]
    return ", ".join(_dotted((name, *path[1:])) for name in (path[0], *also))


def _dotted(path: Path) -> str:
    return "".join("[]" if key == 0 else f".{key}" for key in path).lstrip(".")


def _keys(path: Path, node: Node) -> list[str]:
    rows = []
    for key, raw in properties(node).items():
        child = _value(path, key, raw)
        rows.append(
            (code(key), _type(path, key, child), _default(node, key, raw), _meaning(raw, child))
        )
    return table(HEADER, rows)


def _value(path: Path, key: str, raw: Node) -> Node:
    """The schema of a key's value; of a key of one alternative, that alternative's own."""
    if "$ref" in raw or "anyOf" in raw:
        return node_at((*path, key)) or {}
    return raw


def _meaning(raw: Node, child: Node) -> str:
    return str(raw.get("description") or child.get("description") or "")


def _type(path: Path, key: str, child: Node) -> str:
    below = _section_below((*path, key))
    if below is not None:
        shared = (ALIKE.get(str(below[0]), below[0]), *below[1:])
        kind = "list of sections" if below[-1] == 0 else "section"
        return f"[{kind}]({anchor(heading(shared))})"
    if options := literals(child):
        return ", ".join(map(code, options))
    if child.get("type") == "array":
        items = child["items"]
        return f"list of {', '.join(map(code, literals(items))) or expected(items)}"
    return expected(child)


def _default(section: Node, key: str, raw: Node) -> str:
    if key in section.get("required", ()):
        return "*required*"
    if "default" not in raw:
        return "its keys' defaults"
    value = raw["default"]
    if value is None:
        return "*nothing*"
    if isinstance(value, bool):
        return code(str(value).lower())
    return code(value)
