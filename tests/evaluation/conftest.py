"""Ways to evaluate the tiny model."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from evaluation.tiny import WORDS, Run, make_model, sentences
from pipeline.cache import Cache
from pipeline.evaluation.results import Evaluation
from pipeline.evaluation.run import evaluate
from pipeline.progress import Progress
from pipeline.recipe.fields import Side
from pipeline.recipe.judging import Evaluate


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def progress() -> Progress:
    return Progress("quiet", Console(file=io.StringIO()))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    path = tmp_path / "held_out.jsonl"
    rows = [
        {"text": text, "source": "prose", "digest": str(i)}
        for i, text in enumerate(sentences(40, seed=1))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def task_folder(tmp_path: Path) -> Path:
    """Two multiple-choice tasks over local files."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    for number, name in enumerate(("first_choice", "second_choice")):
        choose = random.Random(number)
        rows = [
            {"question": text, "choices": choose.sample(WORDS, 4), "gold": choose.randrange(4)}
            for text in sentences(30, seed=number + 2)
        ]
        data = folder / f"{name}.json"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.yaml").write_text(
            f"""
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {folder / "cache"}}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_target: gold
doc_to_choice: choices
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
        )
    return folder


@pytest.fixture
def run(
    tmp_path: Path, model_folder: Path, held_out: Path, task_folder: Path, progress: Progress
) -> Run:
    """Evaluate the tiny model; keyword arguments replace fields of `Evaluate`."""

    def run_it(*, model: Path = model_folder, weights: str = "w", **fields: Any) -> Evaluation:
        tasks = [
            {"task": "first_choice", "side": "forget"},
            {"task": "second_choice", "side": "retain"},
        ]
        given = {"tasks": tasks, "dtype": "float32", "batch_tokens": 200, "limit": 12}
        settings = Evaluate.model_validate(given | {"next_token_tokens": 150} | fields)
        sides: dict[str, Side] = {"next_token_prose": "retain"}
        sides |= {task.task: task.side for task in settings.tasks}
        return evaluate(
            model,
            weights,
            settings,
            sides=sides,
            held_out={"prose": held_out},
            task_folders=[task_folder],
            seed=0,
            cache=Cache(tmp_path / "cache"),
            progress=progress,
            device="cpu",
        )

    return run_it
