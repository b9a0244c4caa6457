"""Overrides of a recipe's keys on the command line: `--set select.ffn.fraction=0.2`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.recipe_schema import (
    KeyPath,
    branches,
    key_that_ends_in,
    nearest,
    node_at,
    properties,
    unknown_key,
    words,
)
from pipeline.recipe_yaml import read_yaml

PATH_KEYS = ("path", "task_folders")


def apply_override(data: dict[str, Any], override: str) -> KeyPath:
    """Change `data` as `override` says, and return the path that it sets.

    Missing sections are made. List items are chosen by number or by their `name` or `task`.
    Relative paths start at the working folder, as everywhere on a command line.

    Args:
        data: the recipe as plain values; changed in place.
        override: `key.of.section=value`, whose value is YAML.

    Raises:
        InputError: there is no such key or item, or the value is not YAML.
    """
    where = f"--set {override}"
    keys, equals, text = override.partition("=")
    if not equals or not keys.strip():
        raise InputError(
            "expected key=value", where=where, remedy="write --set select.ffn.fraction=0.2"
        )
    try:
        value = read_yaml(text, where).value
    except InputError as error:  # a line and column within the option help nobody
        raise InputError(error.what, where=where, remedy=error.remedy) from error
    container: Any = data
    path: KeyPath = ()
    rest = keys.strip().split(".")
    while True:
        key, rest = _next_key(container, path, rest, where)
        path = (*path, key)
        if not rest:
            break
        container = _step_into(container, key, path, where)
    _drop_other_origin(container, path)
    container[key] = paths_from(Path.cwd(), value, path)
    return path


def paths_from(folder: Path, value: Any, path: KeyPath = ()) -> Any:
    """Make relative paths of a recipe's part absolute, which start at some folder.

    Args:
        folder: where they start.
        value: the part; it is not changed.
        path: where it stands in the recipe.
    """
    if isinstance(value, dict):
        return {key: paths_from(folder, inner, (*path, key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [paths_from(folder, inner, (*path, index)) for index, inner in enumerate(value)]
    names = [key for key in path if isinstance(key, str)]
    if isinstance(value, str) and value and names and names[-1] in PATH_KEYS:
        return str(folder / Path(value).expanduser())
    return value


def _next_key(
    container: Any, path: KeyPath, rest: list[str], where: str
) -> tuple[str | int, list[str]]:
    """Return the key or list index that the next words name, and the words after it."""
    if isinstance(container, list):
        return _item(container, path, rest, where)
    valid = properties(node_at(path) or {})
    if rest[0] not in valid:
        whole = key_that_ends_in(rest) if not path else None
        what = f"unknown key `{rest[0]}`; did you mean `{whole}`?" if whole else None
        raise InputError(what or f"{_prefix(path)}{unknown_key(rest[0], valid)}", where=where)
    return rest[0], rest[1:]


def _item(items: list[Any], path: KeyPath, rest: list[str], where: str) -> tuple[int, list[str]]:
    if rest[0].isdecimal() and int(rest[0]) < len(items):
        return int(rest[0]), rest[1:]
    names = [
        str(item.get("name", item.get("task"))) if isinstance(item, dict) else "" for item in items
    ]
    for length in range(len(rest), 0, -1):  # a name may contain dots itself
        name = ".".join(rest[:length])
        if name in names:
            index = names.index(name)
            if name in names[index + 1 :]:
                numbers = [number for number, other in enumerate(names) if other == name]
                raise InputError(
                    f"{_prefix(path)}several items are called `{name}`",
                    where=where,
                    remedy=f"choose by number: one of {words(numbers)}",
                )
            return index, rest[length:]
    named = [name for name in names if name]
    among = f"numbers 0 to {len(items) - 1}" if items else "the list is empty"
    raise InputError(
        f"{_prefix(path)}no item `{rest[0]}`{nearest(rest[0], named)} ({among}"
        + (f"; names {words(dict.fromkeys(named))})" if named else ")"),
        where=where,
    )


def _step_into(container: Any, key: str | int, path: KeyPath, where: str) -> Any:
    """Return what stands at `key`, after making it if it is a section that is missing."""
    node = node_at(path) or {}
    absent = container[key] is None if isinstance(key, int) else container.get(key) is None
    if absent and node.get("type") == "array":
        container[key] = []
    elif absent and properties(node):
        container[key] = {}
    inner = container[key] if not absent or properties(node) or "items" in node else None
    if not isinstance(inner, dict | list):
        raise InputError(f"{_prefix(path)}there is nothing below this key", where=where)
    return inner


def _drop_other_origin(container: Any, path: KeyPath) -> None:
    """Let `source.path=…` replace a `package` with `file`: an origin has one kind."""
    node = node_at(path[:-1]) or {}
    alternatives = branches(node)
    if len(alternatives) == 1:
        return
    for branch in alternatives:
        if path[-1] in branch["required"]:
            for other in set(container) - set(branch["properties"]):
                del container[other]


def _prefix(path: KeyPath) -> str:
    return f"{'.'.join(map(str, path))}: " if path else ""
