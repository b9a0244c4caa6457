"""Base and pruned model answer the same prompts.

Nothing is verified here, and no code of a release is run. Where the reader names no base, it is the
one that `verify` would take, and else the one that the release names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.cache import Cache
from pipeline.errors import InputError
from pipeline.evaluation.loading import PLAIN, Terms
from pipeline.evaluation.streaming import Manner, Message, Speaker
from pipeline.export.manifest import read_manifest
from pipeline.progress import Progress
from pipeline.recipe.texts import HubSource, Model, PathSource
from pipeline.recipe_file import load_recipe, shipped_recipe
from pipeline.sources.models import ResolvedModel, resolve_model
from pipeline.sources.releases import fetch_release, model_source
from pipeline.verify import manifest_of, said_model

DTYPE = "bfloat16"


@dataclass
class Conversation:
    """Two models and what was said so far, to each and by each.

    Attributes:
        speakers: base and pruned.
        manner: how they answer.
        with_template: prompts are messages of a chat; else texts that are continued, each alone.
    """

    speakers: tuple[Speaker, Speaker]
    manner: Manner
    with_template: bool
    said: tuple[list[Message], list[Message]] = field(default_factory=lambda: ([], []))

    def ask(self, prompt: str) -> Iterator[tuple[str, str]]:
        """Yield what both have written so far, until both are done.

        What is not read to its end is not remembered.

        Raises:
            InputError: it does not fit into a model's context, or a chat template fails.
        """
        question: Message = {"role": "user", "content": prompt}
        ids = [
            speaker.read_chat([*said, question]) if self.with_template else speaker.read(prompt)
            for speaker, said in zip(self.speakers, self.said, strict=True)
        ]
        answers = [
            speaker.answer(each, self.manner)
            for speaker, each in zip(self.speakers, ids, strict=True)
        ]
        now = ["", ""]
        for both in zip_longest(*answers):
            now = [text if text is not None else old for text, old in zip(both, now, strict=True)]
            yield now[0], now[1]
        if self.with_template:
            for said, text in zip(self.said, now, strict=True):
                said += [question, {"role": "assistant", "content": text}]

    def reset(self) -> None:
        """Forget what was said."""
        for said in self.said:
            said.clear()


def converse(
    first: str,
    second: str | None,
    base: str | None,
    recipe: str | None,
    overrides: Sequence[str],
    *,
    template: bool,
    manner: Manner,
    cache: Cache,
    progress: Progress,
) -> Conversation:
    """Load both models.

    Args:
        first: the base if there is a second, else the release.
        second: the release, or any other model.
        base: the base, if there is no second.
        recipe: recipe that names the base, if there is no second.
        overrides: overrides of the recipe.
        template: talk through the chat template if both models have one.
        manner: how they answer.
        cache: keeps converted models.
        progress: where to report.

    Raises:
        InputError: there is no such model or release, or it cannot be loaded.
        BrokenError: the Hub cannot be reached.
    """
    if second is not None and (base or recipe):
        raise InputError(
            "the base is given twice",
            where="--base" if base else "--recipe",
            remedy="give BASE and PRUNED, or PRUNED alone with --base or --recipe",
        )
    with progress.stage("Base model"):
        if second is None:
            folder = fetch_release(first, progress)
            model = _base(folder, base, recipe, overrides, cache, progress)
        else:
            model = _model(first, cache, progress)
        terms = Terms(model.path) if model.code == "run" else PLAIN
        one = Speaker(model.name, model.path, DTYPE, terms)
    with progress.stage("Pruned model"):
        if second is not None:
            folder = _folder(second, cache, progress)
        if _needs_code(read_manifest(folder) or {}) and model.code != "run":
            raise InputError(
                "this release is computed by code of its base, which nothing here allows",
                where=second or first,
                remedy="read that code, then give the release alone with --recipe and "
                "--set model.trust_remote_code=true; the base's copy is run, never the release's",
            )
        other = Speaker(second or first, folder, DTYPE, terms)
    speakers = one, other
    return Conversation(speakers, manner, template and all(s.has_chat_template for s in speakers))


def _folder(reference: str, cache: Cache, progress: Progress) -> Path:
    """The folder of a release, or of a model that has to be converted."""
    source = model_source(reference)
    if isinstance(source, HubSource) or (
        isinstance(source, PathSource) and Path(source.path).is_dir()
    ):
        return fetch_release(reference, progress)
    return _model(reference, cache, progress).path


def _model(reference: str, cache: Cache, progress: Progress) -> ResolvedModel:
    source: Any = model_source(reference)
    return resolve_model(Model(source=source), Path(), cache, progress)


# ── the base of a release ────────────────────────────────────────────────────────────────────────


def _base(
    folder: Path,
    base: str | None,
    recipe: str | None,
    overrides: Sequence[str],
    cache: Cache,
    progress: Progress,
) -> ResolvedModel:
    """The base of a release: as the reader says, as a recipe of that name, as the release says."""
    if base is not None:
        return _model(base, cache, progress)
    manifest = manifest_of(folder)
    if recipe is None and (path := shipped_recipe(str(manifest.get("name")))) is not None:
        recipe = str(path)
    if recipe is not None:
        loaded = load_recipe(recipe, overrides)
        model = loaded.recipe.model
        if not _needs_code(manifest):  # the stock class computes the release, and so it does both
            model = model.model_copy(update={"trust_remote_code": False})
        return resolve_model(model, loaded.folder, cache, progress)
    named = _named_by(manifest, folder)
    progress.say(f"You have no recipe {manifest.get('name')!r}: the base is what the release names")
    return resolve_model(named, Path(), cache, progress)


def _needs_code(manifest: dict[str, Any]) -> bool:
    """Whether a release says that code which came with its base computes it."""
    return said_model(manifest).get("trust_remote_code") is True


def _named_by(manifest: dict[str, Any], folder: Path) -> Model:
    """The base that a release names: where it is and how it is converted, never what may be run.

    Raises:
        InputError: it names none that can be found from here.
    """
    with suppress(KeyError, TypeError, ValidationError):
        said, origin = manifest["recipe"]["model"], manifest["base"]["origin"]
        source = dict(said["source"])
        if "hub" in source:
            source["revision"] = origin["commit"]
        if "path" not in source or Path(source["path"]).is_absolute():
            kept = {key: said[key] for key in ("dtype", "dequantise") if key in said}
            return Model.model_validate({"source": source, **kept})
    raise InputError(
        "the base of this release is not known here",
        where=str(folder),
        remedy="name it: unlearn chat BASE PRUNED",
    )
