"""Rows, card and table: what a reader sees of a run."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError
from rich.console import Console

from pipeline.release.card import card_text
from pipeline.release.results import metric_rows, size_rows
from pipeline.release.show import show_recipes, show_result

NAN = math.nan


def task(side: str, metrics: dict[str, float], stderr: dict[str, float | None]) -> dict[str, Any]:
    higher = {metric: metric != "loss" for metric in metrics}
    return {
        "side": side,
        "metrics": metrics,
        "stderr": stderr,
        "higher_is_better": higher,
        "n": 7,
    }


def evaluation() -> dict[str, Any]:
    before = {
        "zebra": task("forget", {"loss": 2.0, "top1": 0.5}, {"top1": 0.01, "loss": None}),
        "apple": task("retain", {"word_accuracy": 0.0}, {"word_accuracy": NAN}),
    }
    after = {
        "zebra": task("forget", {"loss": 3.5, "top1": 0.25}, {"top1": 0.02, "loss": None}),
        "apple": task("retain", {"word_accuracy": 0.1}, {"word_accuracy": None}),
    }
    return {
        "base": {"tasks": before},
        "pruned": {"tasks": after},
        "forward_tokens_per_second": {"base": 100.0, "pruned": 125.0},
        "gates": [],
    }


def manifest(**fields: Any) -> dict[str, Any]:
    return {
        "name": "no-x",
        "description": "No x.",
        "language": "en",
        "verdict": "UNJUDGED",
        "base": {
            "name": "org/model",
            "origin": {},
            "licence": "MIT",
            "parameters": 1000,
            "bytes": 2_000_000,
        },
        "pruned": {"parameters": 900, "bytes": 1_500_000},
        "units": {"ffn": {"kept": 6, "total": 8}, "kv_heads": {"kept": 4, "total": 4}},
        "tensors": {"sliced": [], "compensated": []},
        "environment": {"lm_eval": "1", "unlearn-pipeline": "1"},
        "recipe": {"evaluate": {"dtype": "float32"}, "compensate": {"publish_maps": True}},
        "evaluation": evaluation(),
        "prompts": [],
        "proof": {"max_difference": 1e-5, "tokens": 10, "tolerance": 1e-3},
        "corpora": [],
    } | fields


def test_forget_comes_first_and_errors_are_shown_where_there_are_any() -> None:
    rows = metric_rows(evaluation())
    assert [(row.side, row.task, row.metric) for row in rows] == [
        ("forget", "zebra", "top1"),
        ("forget", "zebra", "loss"),
        ("retain", "apple", "word_accuracy"),
    ]
    top1, loss, accuracy = rows
    assert (top1.before, top1.after) == ("0.500 ± 0.010", "0.250 ± 0.020")
    assert top1.change == "-0.250 (-50.0 %)"
    assert (loss.before, loss.change) == ("2.000", "+1.500")
    assert (accuracy.before, accuracy.change) == ("0.000", "+0.100 (–)")  # no share of nothing


def test_what_is_not_a_number_is_a_dash() -> None:
    unknown = evaluation()
    unknown["pruned"]["tasks"]["zebra"]["metrics"]["loss"] = None  # as NaN is written in JSON
    loss = metric_rows(unknown)[1]
    assert (loss.before, loss.after, loss.change) == ("2.000", "–", "–")


def test_sizes_are_against_the_base() -> None:
    assert [tuple(row) for row in size_rows(manifest())] == [
        ("parameters", "1,000", "900", "-10.0 %"),
        ("weights on disk", "2.0 MB", "1.5 MB", "-25.0 %"),
        ("forward pass", "100 tokens/s", "125 tokens/s", "+25.0 %"),
    ]


@pytest.mark.parametrize(
    ("verdict", "words"),
    [("FAIL", "> **FAIL:"), ("UNJUDGED", "> **UNJUDGED:"), ("PASS", "Verdict: **PASS**")],
)
def test_a_card_says_its_verdict_plainly(verdict: str, words: str) -> None:
    card = card_text(manifest(verdict=verdict))
    assert words in card
    assert ("> **" in card) is (verdict != "PASS")


def test_a_card_says_how_to_load() -> None:
    stock, ragged = (
        card_text(manifest(recipe=manifest()["recipe"] | {"select": {"policy": policy}}))
        for policy in ("uniform", "ragged")
    )
    assert "no remote code is needed" in stock and "trust_remote_code" not in stock
    assert 'from_pretrained("path/or/hub-id", trust_remote_code=True)' in ragged


def test_a_card_names_the_base_and_only_what_was_removed() -> None:
    card = card_text(manifest())
    head = card.split("---")[1]
    assert "license: mit" in head
    assert "base_model: org/model" in head
    assert "2 of 8 FFN neurons" in card
    assert "kv heads" not in card
    assert "license:" not in card_text(manifest(base=manifest()["base"] | {"licence": None}))


@pytest.mark.parametrize("score", ["contribution", "random", "magnitude"])
def test_a_baseline_does_not_claim_to_know_the_texts(score: str) -> None:
    select = {"ffn": {"fraction": 0.1, "score": score}, "attention": {"fraction": 0.0}}
    card = card_text(manifest(recipe=manifest()["recipe"] | {"select": select}))
    assert ("serve the forget texts" in card) is (score == "contribution")
    assert (f"FFN neurons ({score}) were chosen without regard" in card) is (
        score != "contribution"
    )


@pytest.mark.parametrize(
    ("score", "fraction"), [("learned", 0.1), ("learned", 0.0), ("ratio", 0.1)]
)
def test_a_card_says_that_gates_were_trained(score: str, fraction: float) -> None:
    select = {"ffn": {"fraction": fraction, "score": score}, "attention": {"fraction": 0.0}}
    card = card_text(manifest(recipe=manifest()["recipe"] | {"select": select}))
    assert ("trained by gradients" in card) is (score == "learned" and fraction > 0)


def test_generated_text_cannot_leave_its_block() -> None:
    example = {"prompt": "a | b", "before": "```\n# title\n```", "after": "<b>x</b> {{ m }}"}
    card = card_text(manifest(prompts=[example]))
    assert "````text\n```\n# title\n```\n````" in card
    assert "<b>x</b> {{ m }}" in card


def test_a_table_is_not_broken_by_what_a_recipe_says() -> None:
    corpus = {
        "name": "a",
        "side": "retain",
        "genre": "x | y\nz",
        "licence": "CC0",
        "scored_documents": 1,
        "held_out_documents": 1,
    }
    assert "x \\| y z" in card_text(manifest(corpora=[corpus]))


def test_a_manifest_that_lacks_something_makes_no_card() -> None:
    lacking = manifest()
    del lacking["proof"]
    with pytest.raises(UndefinedError):
        card_text(lacking)


def shown(show: Any, *arguments: Any) -> str:
    stream = io.StringIO()
    show(*arguments, Console(file=stream, width=100))
    return stream.getvalue()


def test_the_terminal_shows_the_same(tmp_path: Path) -> None:
    gate = {"decision": "FAIL", "sentence": "zebra top1 dropped 50 % (at least 60 %)"}
    failed = manifest(verdict="FAIL", evaluation=evaluation() | {"gates": [gate]})
    text = shown(show_result, tmp_path, failed)
    for words in ("zebra top1", "-0.250 (-50.0 %)", "FAIL  zebra top1 dropped", "Verdict: FAIL"):
        assert words in text


def test_brackets_in_a_description_are_text() -> None:
    text = shown(show_recipes, [("a", "Removes [x] and [/y].", ""), ("b", "B.", "own/[b].yaml")])
    assert "Removes [x] and [/y]." in text and "own/[b].yaml" in text
