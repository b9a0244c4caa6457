"""Recipes that start from another: `extends: no-code`.

Mappings merge; corpora merge by their names and tasks by theirs; whatever else stands in both is
the extending recipe's. An item that says `remove: true` drops the other recipe's of its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.recipe_override import paths_from
from pipeline.recipe_schema import KeyPath

KEY = "extends"
OWN = ("name", "description", KEY, "publish")  # never taken from the recipe that is extended
NAMED = {("forget",): "name", ("retain",): "name", ("evaluate", "tasks"): "task"}
WHOLE = ("source",)  # one kind of origin or another, whose keys do not mix
REMOVE = "remove"

Place = tuple[str, int]  # file and line


@dataclass(frozen=True)
class Part:
    """Plain values of a recipe, or of a part of one, and where each key of it was written."""

    value: Any
    places: dict[KeyPath, Place]

    def of(self, key: str | int) -> Part:
        """What stands at a key."""
        own = {path[1:]: place for path, place in self.places.items() if path[:1] == (key,)}
        return Part(self.value[key], own)


def extended(
    path: Path, read: Callable[[Path], Part], find: Callable[[str, Path], Path]
) -> tuple[Part, list[Path]]:
    """Read a recipe and all that it extends, one upon the other.

    Args:
        path: the recipe's file.
        read: reads a file, whose value is a mapping.
        find: finds what a recipe of a folder extends, by what it says.

    Returns:
        The merged recipe, and the files that it extends, nearest first.

    Raises:
        InputError: a recipe extends itself, or what cannot be read.
    """
    chain = [(path, read(path))]
    while (said := chain[-1][1].value.get(KEY)) is not None:
        current, part = chain[-1]
        where = "{}:{}".format(*part.places.get((KEY,), (str(current), 1)))
        if not isinstance(said, str) or not said:
            raise InputError(f"{KEY}: expected the name or path of a recipe", where=where)
        try:
            parent = find(said, current.parent)
        except InputError as error:
            raise InputError(f"{KEY}: {error.what}", where=where, remedy=error.remedy) from error
        if parent in [each for each, _ in chain]:
            names = " → ".join(each.stem for each in [*(each for each, _ in chain), parent])
            raise InputError(f"{KEY}: a recipe cannot extend itself ({names})", where=where)
        chain.append((parent, read(parent)))
    *own, (folder, merged) = chain
    for file, part in reversed(own):
        inherited = {key: value for key, value in merged.value.items() if key not in OWN}
        if folder.parent != file.parent:
            inherited = paths_from(folder.parent, inherited)
        merged = _merge(Part(inherited, merged.places), part, ())
        folder = file
    return merged, [file for file, _ in chain[1:]]


def _merge(parent: Part, child: Part, path: KeyPath) -> Part:
    both = isinstance(parent.value, dict) and isinstance(child.value, dict)
    if both and path[-1:] not in [(key,) for key in WHOLE]:
        parts = {key: parent.of(key) for key in parent.value}
        for key in child.value:
            own = child.of(key)
            parts[key] = _merge(parts[key], own, (*path, key)) if key in parts else own
        return _joined({}, parts, child.places.get((), parent.places.get(())))
    named = NAMED.get(tuple(key for key in path if isinstance(key, str)))
    if named and isinstance(parent.value, list) and isinstance(child.value, list):
        items = list(_merge_named(parent, child, named, path))
        return _joined([None] * len(items), dict(enumerate(items)), child.places.get(()))
    return child


def _merge_named(parent: Part, child: Part, key: str, path: KeyPath) -> Iterator[Part]:
    """Yield items of two lists: the parent's, changed by the child's of their name, then others."""
    own = {_name(child.value[i], key): child.of(i) for i in range(len(child.value))}
    known = set()
    for index in range(len(parent.value)):
        item = parent.of(index)
        known.add(name := _name(item.value, key))
        if name is None or name not in own:
            yield item
        elif own[name].value.get(REMOVE) is not True:
            yield _merge(item, own[name], (*path, index))
    for index in range(len(child.value)):
        item = child.of(index)
        name = _name(item.value, key)
        if name is None or name not in known:
            if isinstance(item.value, dict) and REMOVE in item.value:
                where = "{}:{}".format(*item.places.get((), ("", 0)))
                raise InputError(
                    f"{'.'.join(map(str, path))}: there is no {name!r} to remove", where=where
                )
            yield item


def _name(item: Any, key: str) -> str | None:
    name = item.get(key) if isinstance(item, dict) else None
    return name if isinstance(name, str) else None


def _joined(empty: Any, parts: dict[Any, Part], own: Place | None) -> Part:
    places: dict[KeyPath, Place] = {} if own is None else {(): own}
    for key, part in parts.items():
        empty[key] = part.value
        places |= {(key, *path): place for path, place in part.places.items()}
    return Part(empty, places)
