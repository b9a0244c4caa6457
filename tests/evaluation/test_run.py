from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval.evaluator
import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import LlamaForCausalLM

from evaluation.tiny import Run, make_model
from pipeline.errors import InputError
from pipeline.evaluation.journal import Journal
from pipeline.evaluation.model import TokenBudgetLM, load_lm
from pipeline.evaluation.tasks import check_tasks
from pipeline.progress import Progress
from pipeline.recipe.judging import Evaluate


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Sizes of all forward passes."""
    sizes: list[int] = []
    original = LlamaForCausalLM.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(kwargs["input_ids"].numel())
        return original(self, *args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    yield sizes


def test_every_task_is_measured(run: Run) -> None:
    evaluation = run()
    assert list(evaluation.tasks) == ["first_choice", "second_choice", "next_token_prose"]
    choice = evaluation.tasks["first_choice"]
    assert (choice.side, choice.n) == ("forget", 12)
    assert set(choice.metrics) == {"acc", "acc_norm"}
    assert 0 <= choice.metrics["acc"] <= 1 and choice.stderr["acc"] is not None
    prose = evaluation.tasks["next_token_prose"]
    assert set(prose.metrics) == {"top1", "loss", "bits_per_byte"}
    assert prose.metrics["loss"] > 0 and all(prose.stderr.values())
    assert 150 <= prose.tokens < 250
    assert evaluation.tokens_per_second > 0
    json.dumps(evaluation.as_dict())


def test_figures_follow_from_the_samples(run: Run) -> None:
    evaluation = run()
    for name, result in evaluation.tasks.items():
        lines = (evaluation.samples_folder / f"{name}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert len(rows) == result.n == len({row["document"] for row in rows})
        for metric, value in result.metrics.items():
            values = [row[metric] for row in rows]
            if isinstance(values[0], list):
                assert value == pytest.approx(sum(a for a, _ in values) / sum(b for _, b in values))
            else:
                assert value == pytest.approx(sum(values) / len(values))


def test_next_token_figures_are_those_of_the_model(
    run: Run, held_out: Path, model_folder: Path
) -> None:
    from transformers import AutoTokenizer

    result = run(next_token_tokens=10**6).tasks["next_token_prose"]
    model = LlamaForCausalLM.from_pretrained(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    hits = count = size = 0
    loss = 0.0
    for line in held_out.read_text().splitlines():
        text = json.loads(line)["text"]
        ids = torch.tensor(tokenizer(text)["input_ids"])
        with torch.no_grad():
            logits = model(torch.cat([torch.tensor([0]), ids[:-1]])[None]).logits[0]
        hits += int((logits.argmax(-1) == ids).sum())
        loss += float(torch.nn.functional.cross_entropy(logits, ids, reduction="sum"))
        count, size = count + len(ids), size + len(text.encode())
    assert result.n == 40
    assert result.metrics["top1"] == pytest.approx(hits / count)
    assert result.metrics["loss"] == pytest.approx(loss / count, rel=1e-4)
    assert result.metrics["bits_per_byte"] == pytest.approx(loss / size / math.log(2), rel=1e-4)


def test_a_second_run_reads_the_cache(run: Run, forwards: list[int]) -> None:
    first = run()
    assert forwards
    forwards.clear()
    assert run() == first
    assert not forwards


def test_the_batch_size_is_not_part_of_the_key(run: Run, forwards: list[int]) -> None:
    first = run()
    forwards.clear()
    assert run(batch_tokens=1000) == first
    assert not forwards


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "other"},
        {"limit": 13},
        {"dtype": "bfloat16"},
        {"chat_template": True},
        {"next_token_tokens": 300},
    ],
)
def test_what_determines_a_result_is_part_of_the_key(
    run: Run, forwards: list[int], change: dict[str, Any]
) -> None:
    run()
    forwards.clear()
    run(**change)
    assert forwards


def test_changed_documents_are_evaluated_again(
    run: Run, forwards: list[int], task_folder: Path
) -> None:
    first = run()
    forwards.clear()
    data = task_folder / "first_choice.json"
    rows = data.read_text().splitlines()
    data.write_text("\n".join([rows[-1], *rows]) + "\n")
    second = run()
    assert forwards
    assert second.tasks["second_choice"] == first.tasks["second_choice"]
    assert second.tasks["first_choice"].documents != first.tasks["first_choice"].documents


def test_an_interrupted_run_continues_with_the_next_task(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    original = lm_eval.evaluator.evaluate

    def evaluate(*, task_dict: Any, **arguments: Any) -> Any:
        (name,) = task_dict["tasks"]
        if name == "second_choice" and name not in ran:
            ran.append(name)
            raise KeyboardInterrupt
        ran.append(name)
        return original(task_dict=task_dict, **arguments)

    monkeypatch.setattr(lm_eval.evaluator, "evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        run()
    run()
    assert ran == ["first_choice", "second_choice", "second_choice", "next_token_prose"]


def test_a_killed_evaluation_continues_within_the_task(
    run: Run, forwards: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every batch is asked of the model once, and the figures are those of an unbroken run."""
    whole = run(weights="unbroken", batch_tokens=60)
    passes = list(forwards)
    forwards.clear()
    original, calls = TokenBudgetLM._score_batch, []

    def killed(self: Any, *args: Any) -> Any:
        calls.append(self.label)
        if len(calls) in (2, 4):
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(TokenBudgetLM, "_score_batch", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(batch_tokens=60)
        (journal,) = (tmp_path / "cache/evaluation").glob("*.journal")
        with journal.open("a") as line:
            line.write('\n["0123", [[')  # a process that is killed while it writes
    resumed = run(batch_tokens=60)
    assert forwards == passes
    assert calls[:4] == ["first_choice"] * 4 and len(set(calls)) == 3
    for name, result in whole.tasks.items():
        again = resumed.tasks[name]
        assert (again.metrics, again.stderr, again.tokens, again.documents) == (
            result.metrics,
            result.stderr,
            result.tokens,
            result.documents,
        )
    assert not list((tmp_path / "cache/evaluation").glob("*.journal"))


def test_generated_texts_are_in_the_journal_too(
    model_folder: Path, progress: Progress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = load_lm(model_folder, dtype="float32", batch_tokens=60, progress=progress, device="cpu")
    settings = {"until": ["."], "max_gen_toks": 8, "do_sample": False}
    asked = [
        Instance("generate_until", {}, (text, settings), 0) for text in ("the cat", "a", "dogs ran")
    ]
    plain = lm.generate_until(asked)
    lm.journal = Journal(tmp_path / "journal")
    assert lm.generate_until(asked) == plain
    lm.journal = Journal(tmp_path / "journal")
    monkeypatch.setattr(lm, "_generate", pytest.fail)
    assert lm.generate_until(asked) == plain


def test_a_pruned_model_answers_the_same_documents(run: Run, tmp_path: Path) -> None:
    base, other = run(), run(model=make_model(tmp_path / "other", seed=9), weights="o")
    for name, result in base.tasks.items():
        assert result.documents == other.tasks[name].documents
        assert result.metrics != other.tasks[name].metrics or name != "next_token_prose"


def test_few_shot_examples_are_part_of_the_prompts(run: Run) -> None:
    tasks = [{"task": "first_choice", "side": "forget", "num_fewshot": 1}]
    assert run(tasks=tasks).tasks["first_choice"].tokens > run().tasks["first_choice"].tokens


def test_unknown_tasks_are_named_with_near_ones(
    run: Run, task_folder: Path, forwards: list[int]
) -> None:
    tasks = [{"task": "first_choise", "side": "forget"}]
    (task_folder / "broken.yaml").write_text("task: [unclosed")
    with pytest.raises(InputError) as caught:
        run(tasks=tasks)
    assert "first_choise" in caught.value.what
    assert "first_choice" in caught.value.remedy and "broken.yaml" in caught.value.remedy
    assert not forwards


def test_groups_and_repeated_tasks_are_refused(run: Run) -> None:
    with pytest.raises(InputError, match="group"):
        run(tasks=[{"task": "mmlu", "side": "retain"}])
    with pytest.raises(InputError, match="twice"):
        run(tasks=[{"task": "first_choice", "side": side} for side in ("retain", "forget")])


def test_check_counts_without_a_model(task_folder: Path) -> None:
    settings = Evaluate.model_validate(
        {"tasks": [{"task": "first_choice", "side": "forget", "limit": 7}]}
    )
    (check,) = check_tasks(settings, [task_folder])
    assert (check.task, check.side, check.documents) == ("first_choice", "forget", 7)
    assert 50 < check.tokens < 1000
    with pytest.raises(InputError, match="does not exist"):
        check_tasks(settings, [task_folder / "none"])


@pytest.mark.parametrize("content", ["", "{not json", '{"body": "x"}', '{"text": "  "}', "\xff"])
def test_bad_held_out_text_is_the_readers_error(run: Run, held_out: Path, content: str) -> None:
    held_out.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError):
        run()
