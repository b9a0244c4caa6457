"""Reading a recipe: finding its file, overriding its keys, and explaining all that is wrong.

The schema is in `pipeline.recipe`. Errors name line and key; all of a file are reported at once.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from pipeline.cache import check_permission, digest_of
from pipeline.errors import InputError
from pipeline.recipe import Recipe
from pipeline.recipe.texts import PathSource
from pipeline.recipe_errors import Places, explain
from pipeline.recipe_extends import Part, extended
from pipeline.recipe_override import apply_override
from pipeline.recipe_schema import expected, node_at, shown
from pipeline.recipe_yaml import Document, read_yaml

SUFFIXES = (".yaml", ".yml")
OWN_FOLDERS = "UNLEARN_RECIPES"  # environment variable with folders, as PATH has them


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe that is valid, and where it comes from.

    Attributes:
        recipe: the recipe with its overrides.
        path: file that it was read from.
        folder: folder of that file, at which relative paths of the recipe start.
        parents: files of the recipes that it extends, nearest first.
        overrides: the overrides, as given.
        digest: SHA-256 of the recipe with its overrides and defaults; comments do not change it,
            and neither does where the result is published.
    """

    recipe: Recipe
    path: Path
    folder: Path
    parents: tuple[Path, ...]
    overrides: tuple[str, ...]
    digest: str

    def local_paths(self) -> list[Path]:
        """The recipe, and the files and folders on this machine that it names."""
        sources = [self.recipe.model.source, *(c.source for _, c in self.recipe.corpora)]
        named = [Path(s.path).expanduser() for s in sources if isinstance(s, PathSource)]
        named += [Path(name) for name in self.recipe.evaluate.task_folders]
        if self.recipe.publish is not None:
            named += [Path(name).expanduser() for name in self.recipe.publish.extra]
        return [self.path, *self.parents, *(self.folder / path for path in named)]


class ListedRecipe(NamedTuple):
    """A recipe that can be run by its name."""

    name: str
    path: Path
    description: str

    @property
    def own_path(self) -> str:
        """Where it is, if it is the user's own; empty if it came with this installation."""
        is_own = self.path.parent != shipped_recipes_folder().resolve()
        return _shown_path(self.path) if is_own else ""


def load_recipe(
    name_or_path: str, overrides: Sequence[str] = (), folder: Path | None = None
) -> LoadedRecipe:
    """Read and validate a recipe.

    Args:
        name_or_path: name of a recipe in `folder` or among the shipped ones, or path of a file.
        overrides: `key.of.section=value`, applied in order.
        folder: where names are looked up first; `recipes` in the working folder and the folders
            of `$UNLEARN_RECIPES` by default.

    Raises:
        InputError: there is no such recipe, or it is wrong; lists every error with its line.
        PermissionError: it may not be read.
    """
    path = _find(name_or_path, folder)
    whole, parents = extended(path, _part, partial(_find_parent, folder=folder))
    data: dict[str, Any] = whole.value
    places = Places(_shown_path(path), whole.places)
    problems: list[InputError] = []
    for override in overrides:
        try:
            places.override(apply_override(data, override), override)
        except InputError as error:
            problems.append(error)
    recipe = None
    try:
        # JSON mode is strict about types (no "1" for 1) and still takes lists and mappings.
        recipe = Recipe.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        problems = explain(error, places) + problems
    if recipe is None or problems:
        raise _wrong(problems, path)
    return LoadedRecipe(
        recipe=recipe,
        path=path,
        folder=path.parent,
        parents=tuple(parents),
        overrides=tuple(overrides),
        digest=digest_of(recipe.what_makes_the_result()),
    )


def list_recipes(folder: Path | None = None) -> list[ListedRecipe]:
    """Return the recipes that can be run by name, sorted; broken ones say so."""
    return [
        ListedRecipe(name, path, _description(path))
        for name, path in sorted(_available(folder).items())
    ]


def shipped_recipe(name: str) -> Path | None:
    """The file of a recipe that came with this installation, or None if there is none.

    For names that somebody else chose: `recipes` in the working folder may be that somebody's too.
    """
    return _recipes_in(shipped_recipes_folder()).get(name)


def shipped_recipes_folder() -> Path:
    """Return the folder of the recipes that come with this package."""
    package = Path(__file__).resolve().parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def _find(name_or_path: str, folder: Path | None) -> Path:
    given = Path(name_or_path).expanduser()
    check_permission(given)
    if given.suffix in SUFFIXES and given.is_file():
        return given.resolve()
    available = _available(folder)
    if name_or_path in available:
        return available[name_or_path]
    for suffix in SUFFIXES:
        if (path := Path(f"{given}{suffix}")).is_file():
            return path.resolve()
    word = given.stem if given.suffix in SUFFIXES else given.name
    near = difflib.get_close_matches(word, available, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise InputError(
        f"there is no recipe {name_or_path!r}",
        remedy=f"{hint}Available: {', '.join(sorted(available)) or 'none'}; "
        "or give the path of a .yaml file",
    )


def _find_parent(name: str, place: Path, folder: Path | None) -> Path:
    """What a recipe of a folder extends: beside it, else as any recipe is found.

    One that came with this installation extends none but those that did too.
    """
    beside = (place / Path(name).expanduser()).resolve()
    for path in (beside, *(beside.with_name(f"{beside.name}{suffix}") for suffix in SUFFIXES)):
        if path.suffix in SUFFIXES and path.is_file():
            return path
    return _find(name, shipped_recipes_folder() if place == shipped_recipes_folder() else folder)


def _part(path: Path) -> Part:
    document, where = _read(path), _shown_path(path)
    lines = {key: (where, line) for key, (line, _) in document.positions.items()}
    return Part(document.value, lines)


def _available(folder: Path | None) -> dict[str, Path]:
    """Return recipes by name; those of earlier folders win, and shipped ones come last."""
    found: dict[str, Path] = {}
    for place in (*([folder] if folder else own_folders()), shipped_recipes_folder()):
        found = _recipes_in(place) | found
    return found


def own_folders() -> list[Path]:
    """Folders with the user's own recipes: those of what somebody else made are never looked for.

    `verify` and `validate` take no recipe by its name from them: `shipped_recipe`.
    """
    named = os.environ.get(OWN_FOLDERS, "").split(os.pathsep)
    return [Path.cwd() / "recipes", *(Path(name).expanduser() for name in named if name)]


def _recipes_in(place: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for suffix in SUFFIXES:
        for path in sorted(place.glob(f"*{suffix}")):
            if path.is_file():
                found.setdefault(path.stem, path.resolve())
    return found


def _read(path: Path) -> Document:
    where = _shown_path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"this file is not UTF-8 text (byte {error.start})",
            where=f"{where}:{line}",
            remedy="save it as UTF-8",
        ) from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=where) from error
    document = read_yaml(text, where)
    if document.value is None:
        raise InputError(
            "the recipe is empty", where=where, remedy="start from a copy of a shipped recipe"
        )
    if not isinstance(document.value, dict):
        wanted = expected(node_at(()) or {})
        raise InputError(f"expected {wanted}, got {shown(document.value)}", where=f"{where}:1")
    return document


def _description(path: Path) -> str:
    try:
        return str(_read(path).value.get("description", "")).strip()
    except InputError as error:
        return f"cannot be read: {error.what}"


def _wrong(problems: list[InputError], path: Path) -> InputError:
    if len(problems) == 1:
        return problems[0]
    lines = "".join(f"\n{problem}" for problem in problems)
    return InputError(f"{len(problems)} errors{lines}", where=_shown_path(path))


def _shown_path(path: Path) -> str:
    here = Path.cwd().resolve()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
