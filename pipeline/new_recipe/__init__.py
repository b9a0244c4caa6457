"""A first recipe: commented for a newcomer, and one that `check` and `run` take as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cache import Cache, unwritable
from pipeline.errors import BrokenError, InputError
from pipeline.new_recipe.texts import OwnText, own_texts, path_from
from pipeline.progress import Progress
from pipeline.recipe import Recipe, next_token_task
from pipeline.recipe.texts import HubSource, PackageSource, PathSource
from pipeline.recipe_file import SUFFIXES, load_recipe, shipped_recipe
from pipeline.recipe_schema import expected, node_at
from pipeline.recipe_yaml import read_yaml
from pipeline.rendering import environment
from pipeline.sources.corpora import CHARACTERS_PER_TOKEN, Corpora, load_corpora
from pipeline.sources.models import describe_alone
from pipeline.sources.releases import model_source
from pipeline.stages.described import described
from pipeline.stages.preflight import CONTEXT

DEFAULT_RECIPE = "no-code"  # whose model is taken
SEQUENCE_LENGTHS = (512, 256, 128, 64, 32)
Source = HubSource | PathSource | PackageSource


@dataclass(frozen=True)
class NewRecipe:
    """What was written.

    Attributes:
        path: the recipe.
        texts: files with the pieces of texts that were one document each.
        notes: what its author should know.
    """

    path: Path
    texts: tuple[Path, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _ModelFacts:
    """What the recipe has to follow of its model."""

    positions: int | None = None
    fixed_width: bool = False
    unknown: str = ""  # why nothing is known


def new_recipe(
    name: str,
    forget: Sequence[str],
    retain: Sequence[str],
    model: str | None,
    folder: Path,
    cache: Cache,
    progress: Progress,
) -> NewRecipe:
    """Write a recipe around texts; no file is replaced, and none is left if something is wrong.

    Args:
        name: name of the recipe.
        forget: files, folders or patterns with text that shows what is removed.
        retain: the same with text that shows what is kept.
        model: the model, as on a command line; default: that of the default recipe.
        folder: where the recipe goes; made if it is not there.
        cache: where converted models are looked for.
        progress: told what was read.

    Raises:
        InputError: the name is not legal or taken, or a text or the model cannot be read or is too
            short.
    """
    _check_name(name)
    target = folder / f"{name}.yaml"
    for suffix in SUFFIXES:
        _check_free(folder / f"{name}{suffix}")
    source, facts = _model(model, folder, cache)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(error, folder) from error
    with ExitStack() as undo:
        written: list[Path] = []

        def write(path: Path, text: str) -> None:
            _check_free(path)
            try:
                with path.open("x", encoding="utf-8") as stream:
                    undo.callback(path.unlink)
                    stream.write(text)
            except OSError as error:
                raise unwritable(error, path) from error
            written.append(path)

        texts = own_texts(name, forget, retain, folder, write)
        settings = {"model": source, "facts": facts, "name": name}
        corpora = load_corpora(_parsed(_written(texts, 512, settings)), folder, progress)
        content = _written(texts, _sequence_length(corpora, facts), settings)
        recipe = _parsed(content)
        write(target, content)
        undo.pop_all()
    notes = [facts.unknown] if facts.unknown else []
    return NewRecipe(target, tuple(written[:-1]), (*notes, *_notes(recipe, corpora)))


def _check_name(name: str) -> None:
    node = node_at(("name",)) or {}
    if not re.fullmatch(node["pattern"], name) or name.endswith(SUFFIXES):
        raise InputError(
            f"{name!r} is no name of a recipe",
            remedy=f"use {expected(node)}, beginning with a letter or digit and without .yaml: "
            "no-poems",
        )
    if shipped_recipe(name) is not None:
        raise InputError(
            f"a recipe {name!r} came with this tool, and two of one name would be confused",
            remedy=f"choose another name, such as my-{name}",
        )


def _check_free(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise InputError(
            "there is such a file already; it was not touched",
            where=str(path),
            remedy="choose another name, or another folder with --out",
        )


# ── the model ────────────────────────────────────────────────────────────────────────────────────


def _model(reference: str | None, folder: Path, cache: Cache) -> tuple[dict[str, Any], _ModelFacts]:
    """The recipe's `model` section, and what is known of the model."""
    if reference is None:
        path = shipped_recipe(DEFAULT_RECIPE)
        assert path is not None
        model = load_recipe(str(path)).recipe.model
        return model.model_dump(mode="json", exclude_defaults=True), _ModelFacts()
    source: Any = model_source(reference)
    facts = _facts(source, cache)
    if isinstance(source, PathSource):
        source = PathSource(path=path_from(Path(source.path), folder))
    return {"source": source.model_dump(mode="json")}, facts


def _facts(source: Source, cache: Cache) -> _ModelFacts:
    """Facts of a model.

    Raises:
        InputError: it does not exist, or its architecture is not described.
    """
    try:
        model = describe_alone(source, cache)
    except BrokenError as error:  # the Hub is out of reach
        return _ModelFacts(unknown=f"the model was not looked at: {error.what}")
    known = described(model)
    return _ModelFacts(
        getattr(known.config, CONTEXT, None), known.architecture.feed_forward.width is None
    )


# ── the recipe ───────────────────────────────────────────────────────────────────────────────────


def _written(texts: Sequence[OwnText], length: int, settings: dict[str, Any]) -> str:
    """The recipe's text."""
    templates = environment("pipeline.new_recipe", ".")  # YAML, not HTML
    templates.filters |= {"quoted": _quoted, "flow": _flow, "task": next_token_task}
    sides = {side: [text for text in texts if text.side == side] for side in ("forget", "retain")}
    template = templates.get_template("recipe.yaml.jinja")
    return template.render(**settings, **sides, sequence_length=length)


def _parsed(text: str) -> Recipe:
    values = read_yaml(text, "the new recipe").value
    return Recipe.model_validate_json(json.dumps(values), strict=True)


def _sequence_length(corpora: Corpora, facts: _ModelFacts) -> int:
    """The longest sequence that the shortest scored text fills, whatever the tokenizer.

    Raises:
        InputError: it fills none.
    """
    for length in SEQUENCE_LENGTHS:
        if length > (facts.positions or length):
            continue
        needed = length * CHARACTERS_PER_TOKEN
        short = [item for item in corpora if _characters(item.scored) < needed]
        if not short:
            return length
    item = min(corpora, key=lambda each: _characters(each.scored))
    raise InputError(
        f"{_characters(item.scored):,} characters are too few to score a model on, at least "
        f"{needed:,} are needed (a fifth of the documents is held out)",
        where=f"{item.side} text {item.corpus.name}",
        remedy="give more text: some hundred thousand characters are a good start",
    )


def _characters(documents: Sequence[Any]) -> int:
    return sum(len(document.text) for document in documents)


def _notes(recipe: Recipe, corpora: Corpora) -> list[str]:
    """What would leave gates undecided."""
    least = recipe.statistics.min_documents
    return [
        f"{item.corpus.name} has {len(item.held_out)} held-out documents and a gate needs {least}: "
        "give more text, or its gate will be INCONCLUSIVE"
        for item in corpora
        if len(item.held_out) < least
    ]


def _flow(value: Any) -> str:
    """A value as YAML in one line: objects without quotes around what needs none."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items()) + "}"
    return _quoted(value)


def _quoted(value: Any) -> str:
    """A text as YAML, without quotes where it is a plain word."""
    text = str(value)
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_./-]*[A-Za-z0-9]", text)
    is_word = plain and text.lower() not in ("true", "false", "null", "yes", "no", "on", "off")
    return text if is_word else json.dumps(text, ensure_ascii=False)
