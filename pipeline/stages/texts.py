"""The texts of a run: token ids for scoring, held-out documents for judging, cached together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.cache import Cache, digest_of, read_json, write_json
from pipeline.errors import InputError
from pipeline.progress import Progress
from pipeline.recipe.texts import Corpus, PackageSource, PathSource
from pipeline.recipe_file import LoadedRecipe
from pipeline.sources.corpora import load_corpora
from pipeline.sources.documents import origin_of
from pipeline.sources.packages import locate
from pipeline.sources.packing import pack_side, write_jsonl
from pipeline.sources.rows import find_files
from pipeline.stages.base import Base

FORMAT = 3
PROOF_SEQUENCES = 4
PROOF_TOKENS = 256
SELECTION = "selection"  # folder of the documents that a search asks


@dataclass(frozen=True)
class Texts:
    """Everything that a run reads.

    Attributes:
        sequences: by side, token ids [N, S] of the scored documents; and of each protected corpus,
            by `protected(name)`.
        proof_NS: token ids of held-out documents on which the proof compares logits.
        held_out: by corpus name, a JSONL file of its held-out documents.
        selection: the same of those that a search asks, if the recipe has any.
        summary: of every corpus: name, genre, licence, documents, hashes.
    """

    sequences: dict[str, Tensor]
    proof_NS: Tensor
    held_out: dict[str, Path]
    selection: dict[str, Path]
    summary: list[dict[str, Any]]


def prepare(base: Base, loaded: LoadedRecipe, cache: Cache, progress: Progress) -> Texts:
    """Read, split, check and tokenise every corpus of a recipe."""
    key = _key(base, loaded)
    if cache.find("texts", key):
        progress.say("  texts: found in the cache")
    folder = cache.get("texts", key, lambda new: _write(new, base, loaded, progress))
    tensors = load_file(folder / "tokens.safetensors")
    _check_vocabulary(base, tensors)
    names = [corpus.name for _, corpus in loaded.recipe.corpora if corpus.use != "scored"]
    searched = names if loaded.recipe.select.until is not None else []
    alone = [protected(corpus.name) for corpus in loaded.recipe.retain if corpus.protect]
    return Texts(
        sequences={key: tensors[key].long() for key in ("forget", "retain", *alone)},
        proof_NS=tensors["proof"].long(),
        held_out={name: folder / f"{name}.jsonl" for name in names},
        selection={name: folder / SELECTION / f"{name}.jsonl" for name in searched},
        summary=read_json(folder / "summary.json"),
    )


def protected(name: str) -> str:
    """Key of a protected corpus among the sequences."""
    return f"protect.{name}"


def _write(folder: Path, base: Base, loaded: LoadedRecipe, progress: Progress) -> None:
    recipe = loaded.recipe
    corpora = load_corpora(recipe, loaded.folder, progress)
    tokens: dict[str, Tensor] = {}
    for side in ("forget", "retain"):
        packed = pack_side(corpora, side, base.tokenizer, recipe)
        for name, ids in packed.items():
            progress.say(f"  {side}: {name}, {ids.numel():,} tokens to score")
        tokens[side] = torch.cat(list(packed.values())).int()
        for corpus in recipe.retain if side == "retain" else ():
            if corpus.protect:
                tokens[protected(corpus.name)] = packed[corpus.name].int()
    held_out = []
    for item in corpora:
        if item.corpus.use == "scored":
            continue
        path = folder / f"{item.corpus.name}.jsonl"
        write_jsonl(path, item, base.tokenizer, recipe.evaluate.next_token_tokens)
        if recipe.select.until is not None:
            path = folder / SELECTION / path.name
            path.parent.mkdir(exist_ok=True)
            write_jsonl(path, item, base.tokenizer, recipe.select.until.tokens, item.selection)
        held_out.append([document.text for document in item.held_out])
    tokens["proof"] = _proof_sequences(held_out, base).int()
    save_file(tokens, folder / "tokens.safetensors")
    write_json(folder / "summary.json", corpora.summary())


def _check_vocabulary(base: Base, tokens: dict[str, Tensor]) -> None:
    highest, known = max(int(ids.max()) for ids in tokens.values()), base.config.vocab_size
    if highest >= known:
        raise InputError(
            f"the tokenizer makes token {highest}, and the model knows only {known} tokens",
            where=base.model.name,
            remedy="put the tokenizer that belongs to the model into its folder",
        )


def _proof_sequences(held_out: list[list[str]], base: Base) -> Tensor:
    """Sequences from every held-out corpus in turn, or from the model's vocabulary if none is."""
    wanted = PROOF_SEQUENCES * PROOF_TOKENS
    ids: list[int] = []
    for texts in held_out:
        own: list[int] = []
        for text in texts:
            own += base.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            if len(own) >= wanted / len(held_out):
                break
        ids += own[: -(-wanted // len(held_out))]
    if not ids:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(len(base.tokenizer), (wanted,), generator=generator).tolist()
    repeated = (ids * (wanted // len(ids) + 1))[:wanted]
    return torch.tensor(repeated).view(PROOF_SEQUENCES, PROOF_TOKENS)


def _key(base: Base, loaded: LoadedRecipe) -> dict[str, Any]:
    recipe = loaded.recipe
    return {
        "format": FORMAT,
        "corpora": [
            [side, corpus.model_dump(), _fingerprint(corpus, loaded.folder)]
            for side, corpus in recipe.corpora
        ],
        "scoring": recipe.scoring.model_dump(exclude={"batch_tokens", "skip_positions"}),
        "next_token_tokens": recipe.evaluate.next_token_tokens,
        "selection_tokens": recipe.select.until.tokens if recipe.select.until else None,
        "seed": recipe.seed,
        "tokenizer": digest_of(_stamps(_tokenizer_files(base.model.path))),
    }


def _tokenizer_files(folder: Path) -> list[Path]:
    patterns = ("*token*", "vocab*", "merges*", "spiece*", "chat_template*")
    return sorted({path for pattern in patterns for path in folder.glob(pattern)})


def _fingerprint(corpus: Corpus, folder: Path) -> Any:
    """What changes when a source changes, without reading it."""
    source = corpus.source
    files = []
    if isinstance(source, PackageSource):
        files = locate(source.package, source.file)
    if isinstance(source, PathSource):
        files = find_files(source.path, folder)
    return [origin_of(corpus), _stamps(files)]


def _stamps(files: list[Path]) -> list[tuple[str, int, int]]:
    stats = [(path, path.stat()) for path in files]
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats]
