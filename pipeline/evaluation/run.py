"""Evaluate a model on every task of a recipe; each task's result is cached by content."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lm_eval.evaluator
import torch

from pipeline.cache import Cache, digest_of_file
from pipeline.errors import InputError
from pipeline.evaluation.loading import load_tokenizer
from pipeline.evaluation.model import TokenBudgetLM, load_lm
from pipeline.evaluation.next_token import next_token_config, read_documents
from pipeline.evaluation.quiet import quiet
from pipeline.evaluation.results import (
    SAMPLES_FILE,
    Evaluation,
    read_result,
    result_of,
    write_result,
)
from pipeline.evaluation.tasks import LoadedTask, digest_of_task, load_config, load_tasks
from pipeline.progress import Progress
from pipeline.recipe import Evaluate, Side, next_token_task

FORMAT = 1  # raise when results of the same key would differ
STAGE = "evaluation"
SAMPLES_STAGE = "evaluation-samples"
# The files beside the weights that decide what a model reads and answers.
MODEL_FILES = (
    "config.json",
    "tokenizer*",
    "vocab*",
    "merges*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
)


def evaluate(
    model_folder: Path,
    weights_sha256: str,
    settings: Evaluate,
    *,
    sides: Mapping[str, Side],
    held_out: Mapping[str, Path],
    task_folders: Sequence[Path],
    seed: int,
    cache: Cache,
    progress: Progress,
    device: str | None = None,
) -> Evaluation:
    """Evaluate a checkpoint; tasks whose results are cached are not run again.

    Args:
        model_folder: the checkpoint.
        weights_sha256: digest of its weights.
        settings: the recipe's `evaluate`.
        sides: side of every evaluation (`Recipe.evaluated`).
        held_out: JSONL file with the held-out text of each corpus that is judged.
        task_folders: folders with task YAML files.
        seed: seed of few-shot examples.
        cache: where results are kept, one entry a task.
        progress: where to report.
        device: torch device; by default a GPU if there is one.

    Raises:
        InputError: an unknown task, unreadable text, or a model that cannot be loaded.
        BrokenError: a task's documents cannot be fetched.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    jobs = [
        *load_tasks(settings, task_folders, seed),
        *_next_token_tasks(model_folder, settings, held_out, seed),
    ]
    model_key = _model_key(model_folder, weights_sha256, settings, device)
    keys = {job.name: _key(job, model_key, seed) for job in jobs}
    missing = [job for job in jobs if cache.find(STAGE, keys[job.name]) is None]
    if len(missing) < len(jobs):
        progress.say(f"  {len(jobs) - len(missing)} of {len(jobs)} tasks are already evaluated")
    if missing:
        lm = load_lm(
            model_folder,
            dtype=settings.dtype,
            batch_tokens=settings.batch_tokens,
            progress=progress,
            device=device,
        )
        _check_chat_template(lm, settings, model_folder)
        for job in missing:
            with cache.make(STAGE, keys[job.name]) as folder:
                _run(job, lm, settings, seed, folder)
    folders = {job.name: _made(cache, keys[job.name]) for job in jobs}
    results = {name: read_result(folders[name], name, sides[name]) for name in folders}
    return Evaluation(results, _gather_samples(cache, keys, folders))


def _next_token_tasks(
    model_folder: Path, settings: Evaluate, held_out: Mapping[str, Path], seed: int
) -> list[LoadedTask]:
    if not held_out:
        return []
    tokenizer = load_tokenizer(model_folder)
    return [
        load_config(
            next_token_config(
                next_token_task(corpus),
                read_documents(path, tokenizer, settings.next_token_tokens),
            ),
            seed,
        )
        for corpus, path in held_out.items()
    ]


def _model_key(
    model_folder: Path, weights_sha256: str, settings: Evaluate, device: str
) -> dict[str, Any]:
    files = sorted({p for pattern in MODEL_FILES for p in model_folder.glob(pattern)})
    return {
        "weights_sha256": weights_sha256,
        "model_files": {path.name: digest_of_file(path) for path in files if path.is_file()},
        "dtype": settings.dtype,
        "chat_template": settings.chat_template,
        "device": torch.device(device).type,
        "versions": {name: version(name) for name in ("lm_eval", "transformers", "torch")},
        "format": FORMAT,
    }


def _key(job: LoadedTask, model_key: dict[str, Any], seed: int) -> dict[str, Any]:
    task = {"name": job.name, "digest": digest_of_task(job, seed), "limit": job.limit}
    task |= {"num_fewshot": job.task.get_config("num_fewshot"), "seed": seed}
    return {**model_key, "task": task}


def _check_chat_template(lm: TokenBudgetLM, settings: Evaluate, model_folder: Path) -> None:
    if settings.chat_template and not lm.tokenizer.chat_template:
        raise InputError(
            "evaluate.chat_template is set, but the model's tokenizer has no chat template",
            where=str(model_folder),
            remedy="set evaluate.chat_template to false",
        )


def _run(job: LoadedTask, lm: TokenBudgetLM, settings: Evaluate, seed: int, folder: Path) -> None:
    lm.label, lm.tokens_read, lm.seconds = job.name, 0, 0.0
    job.task.set_fewshot_seed(seed=seed)
    with quiet():
        output = lm_eval.evaluator.evaluate(
            lm=lm,
            task_dict={"tasks": {job.name: job.task}, "groups": {}},
            limit=job.limit,
            bootstrap_iters=0,  # lm-eval would start processes; see results.standard_error
            log_samples=True,
            apply_chat_template=settings.chat_template,
            fewshot_as_multiturn=settings.chat_template,
        )
    result = result_of(job.name, output, job.task, lm.tokens_read, lm.seconds)
    write_result(folder, result, output["samples"][job.name])


def _made(cache: Cache, key: dict[str, Any]) -> Path:
    folder = cache.find(STAGE, key)
    if folder is None:
        raise InputError(
            "a result disappeared from the cache while it was in use",
            where=str(cache.root),
            remedy="run the same command again",
        )
    return folder


def _gather_samples(
    cache: Cache, keys: Mapping[str, dict[str, Any]], folders: Mapping[str, Path]
) -> Path:
    key = {"tasks": dict(keys)}
    found = cache.find(SAMPLES_STAGE, key)
    if found is None:
        with cache.make(SAMPLES_STAGE, key) as gathered:
            for name, folder in folders.items():
                shutil.copyfile(folder / SAMPLES_FILE, gathered / f"{name}.jsonl")
        found = cache.find(SAMPLES_STAGE, key)
    assert found is not None
    return found
