"""The lm-eval tasks of a recipe: found by name, loaded, and asked what they cost."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.exceptions import DatasetsError
from huggingface_hub.errors import HfHubHTTPError
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from pipeline.cache import digest_of
from pipeline.errors import BrokenError, InputError, UnlearnError
from pipeline.evaluation.quiet import quiet
from pipeline.evaluation.sandbox import check_available
from pipeline.recipe.fields import Side
from pipeline.recipe.judging import Evaluate

CHARACTERS_PER_TOKEN = 3.5
NEAR_NAMES = 5
SANDBOX = "sandbox"  # what a task's metadata names as its `runner` if it locks programs in


@dataclass(frozen=True)
class TaskCheck:
    """What a task would ask of a model.

    Attributes:
        task: its name.
        side: whether it measures what is forgotten or what is kept.
        documents: documents that it asks about.
        tokens: an estimate from the number of characters.
        metrics: names of its metrics; None if they are only known afterwards.
    """

    task: str
    side: Side
    documents: int
    tokens: int
    metrics: list[str] | None


@dataclass(frozen=True)
class LoadedTask:
    """An lm-eval task that is ready to run on its first `limit` documents."""

    name: str
    task: Any
    limit: int | None

    @property
    def metrics(self) -> list[str] | None:
        """Names of its metrics as in results; None if its own code decides which there are."""
        if self.task.get_config("process_results") is not None:
            return None
        filters = [one.name for one in getattr(self.task, "_filters", [])] or ["none"]
        return [
            metric if name == "none" else f"{metric},{name}"
            for name in filters
            for metric in self.task.aggregation()
        ]


def check_tasks(settings: Evaluate, task_folders: Sequence[Path]) -> list[TaskCheck]:
    """Load every lm-eval task of a recipe and say how much it asks, without a model.

    Raises:
        InputError: an unknown task, or one that cannot be run.
        BrokenError: a task's documents cannot be fetched.
    """
    checks = []
    for spec, loaded in zip(settings.tasks, load_tasks(settings, task_folders, 0), strict=True):
        requests = build_requests(loaded, 0)
        read = {(request.doc_id, request.args[0]) for request in requests}
        characters = sum(len(text) for _, text in read)
        characters += sum(len(str(r.args[1])) for r in requests if len(r.args) > 1)
        documents = len({request.doc_id for request in requests})
        tokens = round(characters / CHARACTERS_PER_TOKEN)
        checks.append(TaskCheck(spec.task, spec.side, documents, tokens, loaded.metrics))
    return checks


def load_tasks(settings: Evaluate, task_folders: Sequence[Path], seed: int) -> list[LoadedTask]:
    """Load the tasks of a recipe, in its order; all names are looked up before any is loaded.

    Raises:
        InputError: an unknown task, or one that cannot be run.
        BrokenError: a task's documents cannot be fetched.
    """
    names = [spec.task for spec in settings.tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"tasks are listed twice: {', '.join(twice)}", where="evaluate.tasks")
    if not names:
        return []
    with quiet():
        manager = _manager(names, task_folders)
        loaded = []
        for spec in settings.tasks:
            task = _load(manager, spec.task)
            if getattr(task, "UNSAFE_CODE", False):
                _check_runs_code(spec.task, task, settings)
            if spec.num_fewshot is not None:
                task.set_config(key="num_fewshot", value=spec.num_fewshot)
            elif task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=seed)
            loaded.append(LoadedTask(spec.task, task, spec.limit or settings.limit))
    return loaded


def load_config(config: dict[str, Any], seed: int) -> LoadedTask:
    """Load a task from lm-eval's configuration of it; all its documents are used."""
    with quiet():
        manager = TaskManager(include_defaults=False)
        task = manager.load([config])["tasks"][config["task"]]
        task.set_fewshot_seed(seed=seed)
    return LoadedTask(config["task"], task, None)


def build_requests(loaded: LoadedTask, seed: int) -> list[Any]:
    """Return what the task asks a model, as lm-eval's instances without a chat template."""
    with quiet():
        loaded.task.set_fewshot_seed(seed=seed)
        loaded.task.build_all_requests(limit=loaded.limit, rank=0, world_size=1)
        requests = list(loaded.task.instances)
        loaded.task.set_fewshot_seed(seed=seed)
    return requests


def digest_of_task(loaded: LoadedTask, seed: int) -> str:
    """Digest of a task's resolved definition and of everything that it asks."""
    config = loaded.task.dump_config()
    # Where the documents lie does not matter; what they say is in the requests.
    for key in ("custom_dataset", "dataset_path", "dataset_name", "dataset_kwargs", "metadata"):
        config.pop(key, None)
    requests = [[r.doc_id, r.request_type, r.doc, r.args] for r in build_requests(loaded, seed)]
    version = str(loaded.task.VERSION)
    return digest_of(_plain({"config": config, "requests": requests, "version": version}))


def _manager(names: Sequence[str], folders: Sequence[Path]) -> TaskManager:
    for folder in folders:
        if not folder.is_dir():
            raise InputError(
                "this folder of tasks does not exist",
                where=str(folder),
                remedy="correct evaluate.task_folders; paths start at the recipe's folder",
            )
    paths = [str(folder) for folder in folders]
    manager = TaskManager(include_path=paths, include_defaults=False)
    if not all(name in manager.task_index for name in names):
        # lm-eval's own list takes seconds to read, so it is read only when it is needed.
        manager = TaskManager(include_path=paths)
    for name in names:
        _check_name(name, manager, folders)
    return manager


def _check_name(name: str, manager: TaskManager, folders: Sequence[Path]) -> None:
    if name in manager.all_subtasks:
        return
    if name in manager.task_index:
        raise InputError(
            f"{name!r} is a group of tasks", where="evaluate.tasks", remedy="list its tasks"
        )
    near = difflib.get_close_matches(name, manager.all_subtasks, n=NEAR_NAMES, cutoff=0.5)
    remedy = f"near names: {', '.join(near)}" if near else "`lm_eval ls tasks` lists lm-eval's own"
    if not folders:
        remedy += "; a task of your own is found in the folders of evaluate.task_folders"
    broken = _broken_files(folders)
    if broken:
        remedy += "".join(f"\n  → not readable: {line}" for line in broken)
    raise InputError(f"there is no task {name!r}", where="evaluate.tasks", remedy=remedy)


def _broken_files(folders: Sequence[Path]) -> list[str]:
    """Return the task files that lm-eval left out, since it does not say so itself."""
    broken = []
    for path in sorted(path for folder in folders for path in folder.rglob("*.yaml")):
        try:
            load_yaml(path, resolve_func=False)
        except Exception as error:
            broken.append(f"{path}: {str(error).splitlines()[0]}")
    return broken


def _load(manager: TaskManager, name: str) -> Any:
    where = f"task {name}"
    try:
        task = manager.load([name])["tasks"][name]
    except UnlearnError:
        raise
    except ImportError as error:
        raise InputError(f"it needs something that is missing: {error}", where=where) from error
    except (OSError, HfHubHTTPError, DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BrokenError(
            f"its documents could not be fetched: {reason}",
            where=where,
            remedy="check the network (HF_ENDPOINT, HF_HUB_OFFLINE, proxies) and try again, or "
            "choose a task whose documents are on this machine",
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"its definition is wrong: {error}", where=where) from error
    if getattr(task, "MULTIMODAL", False):
        raise InputError("it needs more than text", where=where)
    return task


def _check_runs_code(name: str, task: Any, settings: Evaluate) -> None:
    """Refuse a task that runs what a model wrote, unless it is asked for and locked down."""
    if (task.get_config("metadata") or {}).get("runner") != SANDBOX:
        raise InputError(
            "it runs code that the model wrote, and not in the sandbox",
            where=f"task {name}",
            remedy="use unlearn_humaneval_pass or unlearn_mbpp_pass, or write a task like them",
        )
    if not settings.run_generated_code:
        raise InputError(
            "it runs code that the model wrote, which the recipe does not allow",
            where=f"task {name}",
            remedy="set evaluate.run_generated_code to true, or remove the task",
        )
    check_available()


def _plain(value: Any) -> Any:
    """Return a JSON-able form of a configuration; what is not plain becomes its text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | None) else str(value)
