"""The card's metadata, read with the Hub's own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData

from pipeline.cache import plain_json, read_json, write_json
from pipeline.release.card import card_text
from pipeline.release.facts import named_base
from pipeline.sources.licences import licence_of_card

from .test_results import NAN, evaluation, manifest

CORPUS = {
    "name": "zebra",
    "side": "forget",
    "genre": "x: [y]",
    "licence": "CC0",
    "origin": {"dataset": "org/zebras", "commit": "c" * 40},
    "scored_documents": 1,
    "held_out_documents": 1,
}


def read(**fields: Any) -> ModelCardData:
    return ModelCard(card_text(manifest(**fields))).data


def base(**fields: Any) -> dict[str, Any]:
    return manifest()["base"] | fields


def test_what_the_hub_needs_to_know() -> None:
    data = read()
    assert (data.base_model, data.license, data.language) == ("org/model", "mit", ["en"])
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert data["base_model_relation"] in ("adapter", "merge", "quantized", "finetune")
    assert data.tags == ["unlearning", "selective-pruning"]


def test_a_folder_is_no_base_on_the_hub() -> None:
    data = read(base=base(name="my model"))
    assert data.base_model is None and "base_model_relation" not in data.to_dict()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"licence": "Apache-2.0"}, ("apache-2.0", None, None)),
        ({"licence": "llama3.2"}, ("llama3.2", None, None)),
        ({"licence": None}, (None, None, None)),
        ({"licence": "lfm1.0"}, ("other", "lfm1.0", "https://huggingface.co/org/model")),
        ({"licence": "a: b", "files": {"LICENSE.md": ""}}, ("other", "a: b", "LICENSE.md")),
        ({"licence": "x", "name": "folder"}, ("other", "x", None)),
    ],
)
def test_a_licence_that_the_hub_does_not_list_has_a_name(
    fields: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    data = read(base=base(**fields)).to_dict()
    assert tuple(data.get(f"license{end}") for end in ("", "_name", "_link")) == expected
    assert licence_of_card(data) == fields["licence"]  # as whoever prunes it again reads it


def test_results_are_the_pruned_models_beside_the_bases() -> None:
    results = {
        (result.dataset_type, result.metric_type): result
        for result in read(
            corpora=[CORPUS], evaluation=renamed(evaluation(), zebra="next_token_zebra")
        ).eval_results
    }
    assert results.keys() == {
        ("org/zebras", "top1"),
        ("org/zebras", "loss"),
        ("apple", "word_accuracy"),
    }
    top1 = results["org/zebras", "top1"]
    assert (top1.task_type, top1.task_name) == ("text-generation", "What should be forgotten")
    assert (top1.dataset_name, top1.dataset_revision) == ("zebra (x: [y]), held out", "c" * 40)
    assert (top1.metric_value, top1.metric_args) == (
        0.25,
        {"documents": 7, "standard_error": 0.02, "of_the_base": 0.5},
    )
    assert results["apple", "word_accuracy"].task_name == "What should be kept"
    assert "standard_error" not in results["apple", "word_accuracy"].metric_args


def renamed(content: dict[str, Any], **names: str) -> dict[str, Any]:
    for model in ("base", "pruned"):
        tasks = content[model]["tasks"]
        content[model]["tasks"] = {names.get(name, name): task for name, task in tasks.items()}
    return content


def test_what_is_not_a_number_is_left_out_before_and_after_it_was_written(tmp_path: Path) -> None:
    unknown = manifest()
    unknown["evaluation"]["pruned"]["tasks"]["zebra"]["metrics"]["loss"] = NAN
    card = card_text(unknown)
    kinds = [result.metric_type for result in ModelCard(card).data.eval_results]
    assert kinds == ["word_accuracy", "top1"]
    write_json(tmp_path / "manifest.json", unknown)
    assert read_json(tmp_path / "manifest.json") == plain_json(unknown)
    assert card_text(read_json(tmp_path / "manifest.json")) == card


def test_a_text_cannot_leave_the_block() -> None:
    evil = "en\n---\n# title\n<b>"
    assert read(language=evil).language == [evil]


def test_a_card_of_a_release_is_read(release: Any) -> None:
    card = ModelCard.load(release().folder / "README.md")
    assert {result.dataset_type for result in card.data.eval_results} == {"code", "prose"}
    for words in ("llama-cli -m", "vllm serve", "vLLM was not run", "AutoModelForCausalLM"):
        assert words in card.text


def test_line_breaks_at_the_end_of_what_is_written_are_counted() -> None:
    example = {"prompt": "def f():\n", "before": "\n    pass\n", "after": "-  1.\n\n\n\n"}
    card = card_text(manifest(prompts=[example]))
    assert "````text\n\n    pass\n\n````\n\nPruned:" in card
    assert "````text\n-  1.\n````\n\nand 4 line breaks, with nothing between.\n" in card
    assert card.count("line breaks") == 1


@pytest.mark.parametrize(
    ("origin", "name"),
    [
        ({"repository": "org/base", "commit": "0a1b"}, "org/base@0a1b"),
        (
            {"package": "some-models", "version": "1", "file": "a/b.gguf"},
            "package:some-models/a/b.gguf",
        ),
        ({"path": "/home/me/base"}, "path/of/the/base"),
        ({"repository": "org/base\n```\n# Mine"}, "path/of/the/base"),
    ],
)
def test_a_base_is_named_as_a_command_takes_it(origin: dict[str, str], name: str) -> None:
    assert named_base(origin) == name


def test_the_commands_to_check_it_name_the_bases_commit() -> None:
    origin = {"kind": "hub", "repository": "org/model", "commit": "c" * 40}
    assert f"--base org/model@{'c' * 40}" in card_text(manifest(base=base(origin=origin)))
    assert "--base path/of/the/base" in card_text(manifest())
