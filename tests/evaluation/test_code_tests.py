"""Tasks that run what a model wrote: refused unless asked for, and right about what passes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks._yaml_loader import load_yaml

from evaluation.test_tasks import FOLDER, load, needs_package, settings
from evaluation.tiny import Run
from pipeline.errors import InputError
from pipeline.evaluation import sandbox_child
from pipeline.evaluation.tasks import load_tasks

pytestmark = pytest.mark.skipif(
    bool(sandbox_child.available()), reason=f"no isolation: {sandbox_child.available()}"
)

TASK = """
task: writes
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: generate_until
doc_to_text: prompt
doc_to_target: prompt
unsafe_code: true
repeats: {repeats}
generation_kwargs: {{until: ["~"], max_gen_toks: 4, {sampled}}}
filter_list: [{{name: none, filter: [{{function: take_first_k, k: {repeats}}}]}}]
process_results: !function code_tests.mbpp
metric_list: [{{metric: pass@1, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1{runner}}}
"""


def write_task(folder: Path, runner: str = ", runner: sandbox", repeats: int = 1) -> None:
    """A task whose programs pass, whatever a model writes, in every other document."""
    rows = [
        f'{{"prompt": "the cat", "setup": "", "tests": ["{test}"]}}\n'
        for test in ("pass", "assert False") * 4
    ]
    data = folder / "writes.json"
    data.write_text("".join(rows))
    shutil.copy(FOLDER / "code_tests.py", folder)
    text = TASK.format(
        data=data,
        cache=folder / "cache",
        repeats=repeats,
        sampled="do_sample: true, temperature: 0.8" if repeats > 1 else "do_sample: false",
        runner=runner,
    )
    (folder / "writes.yaml").write_text(text)


def results_of(name: str) -> Any:
    return load_yaml(FOLDER / f"unlearn_{name}.yaml", resolve_func=True)["process_results"]


@needs_package
@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_the_canonical_solutions_pass_and_others_do_not(name: str) -> None:
    judge = results_of(f"{name}_pass")
    for doc in list(load(f"unlearn_{name}_pass").task.eval_docs)[:12]:
        assert judge(doc, [doc["solution"]]) == {"pass@1": 1.0}, doc["prompt"]
        assert judge(doc, ["\n    return None\n"]) == {"pass@1": 0.0}


@needs_package
def test_a_prompt_does_not_end_within_a_token() -> None:
    """A line end and the indentation after it are one token; models stop after half of it."""
    for doc in load("unlearn_humaneval_pass").task.eval_docs:
        assert doc["prompt"] == doc["prompt"].rstrip()


@needs_package
def test_pass_at_k_is_that_of_drawing_k_of_n() -> None:
    judge = results_of("humaneval_pass10")
    doc = {"prompt": "", "test": "def check(f): f()", "entry_point": "f"}
    right, wrong = "def f(): pass", "def f(): 1 / 0"
    found = judge(doc, [[right] * 3 + [wrong] * 7])
    assert found == {"pass@1": pytest.approx(0.3), "pass@10": 1.0}
    twelve = judge(doc, [[right] + [wrong] * 11])
    assert twelve == {"pass@1": pytest.approx(1 / 12), "pass@10": pytest.approx(10 / 12)}


@needs_package
def test_it_is_refused_unless_the_recipe_asks() -> None:
    asked = settings("unlearn_humaneval_pass").model_copy(update={"run_generated_code": False})
    with pytest.raises(InputError, match="which the recipe does not allow"):
        load_tasks(asked, [FOLDER], 0)


def test_a_task_without_the_sandbox_is_refused_even_then(task_folder: Path) -> None:
    write_task(task_folder, runner="")
    with pytest.raises(InputError, match="not in the sandbox"):
        load_tasks(settings("writes"), [task_folder], 0)


def test_without_isolation_it_is_refused_before_anything_is_generated(
    task_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_task(task_folder)
    monkeypatch.setattr(sandbox_child, "available", lambda: "no Landlock")
    with pytest.raises(InputError, match="no Landlock"):
        load_tasks(settings("writes"), [task_folder], 0)


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_model_writes_and_its_programs_run(run: Run, task_folder: Path, repeats: int) -> None:
    write_task(task_folder, repeats=repeats)
    tasks = [{"task": "writes", "side": "forget"}]
    evaluation = run(tasks=tasks, run_generated_code=True)
    result = evaluation.tasks["writes"]
    # The tiny model writes words that are seldom a program; the tests alone would pass half.
    assert 0 <= result.metrics["pass@1"] <= 0.5
    assert result.estimator["pass@1"] == "mean"
    lines = (evaluation.samples_folder / "writes.jsonl").read_text().splitlines()
    assert len(lines) == 8


def test_samples_are_the_same_in_the_same_batch_and_differ_between_repeats(
    run: Run, task_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_task(task_folder, repeats=3)
    written: list[list[str]] = []
    from pipeline.evaluation.model import TokenBudgetLM

    original = TokenBudgetLM.generate_until

    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        written.append(original(self, *args, **kwargs))
        return written[-1]

    monkeypatch.setattr(TokenBudgetLM, "generate_until", recorded)
    for weights in ("one", "two"):
        tasks = [{"task": "writes", "side": "forget"}]
        run(tasks=tasks, run_generated_code=True, weights=weights)
    assert written[0] == written[1]
    assert len(set(written[0])) > 1
