"""Evaluate a model on every task of a recipe; each task's result is cached by content."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache as once
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lm_eval.evaluator

from pipeline.cache import Cache
from pipeline.errors import InputError
from pipeline.evaluation.journal import Journal
from pipeline.evaluation.loading import (
    PLAIN,
    Terms,
    default_device,
    key_of_model,
    load_tokenizer,
)
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
from pipeline.recipe import next_token_task
from pipeline.recipe.fields import Side
from pipeline.recipe.judging import Evaluate

FORMAT = 3  # raise when results of the same key would differ
STAGE = "evaluation"
JOURNAL = ".journal"  # beside a task's result: its batches, until it is finished
SAMPLES_STAGE = "evaluation-samples"


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
    terms: Terms = PLAIN,
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
        terms: on what terms the checkpoint is loaded.

    Raises:
        InputError: an unknown task, unreadable text, or a model that cannot be loaded.
        BrokenError: a task's documents cannot be fetched.
    """
    device = device or default_device()
    jobs = [
        *load_tasks(settings, task_folders, seed),
        *_next_token_tasks(model_folder, settings, held_out, seed, terms),
    ]
    model_key = {
        **key_of_model(model_folder, weights_sha256, settings.dtype, device, terms),
        "chat_template": settings.chat_template,
        "lm_eval": version("lm_eval"),
        "format": FORMAT,
    }
    keys = {job.name: _key(job, model_key, seed) for job in jobs}
    if at_hand := sum(cache.find(STAGE, key) is not None for key in keys.values()):
        progress.say(f"  {at_hand} of {len(jobs)} tasks are already evaluated")

    @once
    def model() -> TokenBudgetLM:
        lm = load_lm(
            model_folder,
            dtype=settings.dtype,
            batch_tokens=settings.batch_tokens,
            progress=progress,
            device=device,
            terms=terms,
        )
        _check_chat_template(lm, settings, model_folder)
        return lm

    folders = {}
    for job in jobs:
        journal = cache.beside(STAGE, keys[job.name], JOURNAL)
        work = partial(_run, job, model, settings, seed, journal)
        folders[job.name] = cache.get(STAGE, keys[job.name], work)
        journal.unlink(missing_ok=True)
    results = {name: read_result(folders[name], name, sides[name]) for name in folders}
    return Evaluation(results, _gather_samples(cache, keys, folders), keys)


def _next_token_tasks(
    model_folder: Path,
    settings: Evaluate,
    held_out: Mapping[str, Path],
    seed: int,
    terms: Terms,
) -> list[LoadedTask]:
    if not held_out:
        return []
    tokenizer = load_tokenizer(model_folder, terms)
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


def _run(
    job: LoadedTask,
    model: Callable[[], TokenBudgetLM],
    settings: Evaluate,
    seed: int,
    journal: Path,
    folder: Path,
) -> None:
    lm = model()
    lm.label, lm.tokens_read, lm.seconds, lm.journal = job.name, 0, 0.0, Journal(journal)
    job.task.set_fewshot_seed(seed=seed)
    with quiet():
        output = lm_eval.evaluator.evaluate(
            lm=lm,
            task_dict={"tasks": {job.name: job.task}, "groups": {}},
            limit=job.limit,
            bootstrap_iters=0,  # lm-eval would start processes; see results.standard_error
            log_samples=True,
            confirm_run_unsafe_code=settings.run_generated_code,  # in the sandbox alone: see tasks
            apply_chat_template=settings.chat_template,
            fewshot_as_multiturn=settings.chat_template,
        )
    result = result_of(job.name, output, job.task, lm.tokens_read, lm.seconds)
    write_result(folder, result, output["samples"][job.name])


def _gather_samples(
    cache: Cache, keys: Mapping[str, dict[str, Any]], folders: Mapping[str, Path]
) -> Path:
    def gather(gathered: Path) -> None:
        for name, folder in folders.items():
            shutil.copyfile(folder / SAMPLES_FILE, gathered / f"{name}.jsonl")

    return cache.get(SAMPLES_STAGE, {"tasks": dict(keys)}, gather)
