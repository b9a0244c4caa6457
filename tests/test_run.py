"""The whole chain on a tiny model and two short texts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tiny_models import load, logits, some_ids
from tiny_recipe import PROSE, tiny_recipe, write_recipe

import pipeline.run
import pipeline.stages.cut
from pipeline.cache import Cache, digest_of, digest_of_file, read_json, write_json
from pipeline.errors import BrokenError, InputError
from pipeline.progress import Progress
from pipeline.run import Outcome, Run
from pipeline.stages.base import Base

TinyBase = Callable[..., Base]
TASK = """
task: choose_a_word
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: {prompt}
doc_to_target: gold
doc_to_choice: choices
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


class Place:
    """A recipe, a cache and an output folder of one test."""

    def __init__(self, folder: Path, base: Base) -> None:
        self.folder = folder
        self.base = base
        self.target = folder / "out" / "tiny"
        self.said: list[str] = []

    def run(self, *overrides: str, force: bool = False, **fields: Any) -> Outcome:
        loaded = tiny_recipe(self.folder / "recipe", self.base.model.path, *overrides, **fields)
        progress = Progress("plain", Console(file=open(os.devnull, "w")))  # noqa: SIM115
        self.said = []
        progress.say = lambda text, **_: self.said.append(text)  # type: ignore[method-assign]
        return Run(loaded, Cache(self.folder / "cache"), progress).execute(self.target, force)

    def cached(self, stage: str) -> set[str]:
        folder = self.folder / "cache" / stage
        return set(os.listdir(folder)) if folder.is_dir() else set()


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, tiny_base: TinyBase) -> tuple[Place, Outcome]:
    place = Place(tmp_path_factory.mktemp("run"), tiny_base("llama", dtype=torch.bfloat16))
    return place, place.run()


@pytest.fixture
def place(tmp_path: Path, first: tuple[Place, Outcome]) -> Place:
    """A copy of the first run's cache and output."""
    done, _ = first
    shutil.copytree(done.folder, tmp_path / "run")
    return Place(tmp_path / "run", done.base)


def bytes_in(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): digest_of_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def unmeasured(hashes: dict[str, str]) -> dict[str, str]:
    """Without the files in which a measured speed stands."""
    timed = ("README.md", "report.html", "evaluation.json", "pruning_manifest.json")
    return {name: digest for name, digest in hashes.items() if name not in timed}


def test_the_output_is_whole(first: tuple[Place, Outcome]) -> None:
    place, outcome = first
    assert not outcome.reused
    assert outcome.folder == place.target
    names = set(bytes_in(place.target))
    assert names >= {
        "README.md",
        "config.json",
        "evaluation.json",
        "model.safetensors",
        "pruning_manifest.json",
        "samples/base/next_token_code.jsonl",
        "samples/pruned/next_token_prose.jsonl",
        "tokenizer.json",
    }
    assert not any(name.endswith("key.json") for name in names)
    assert os.listdir(place.target.parent) == ["tiny"]  # no temporary folder is left


def test_the_manifest_says_what_was_done(first: tuple[Place, Outcome]) -> None:
    place, outcome = first
    manifest = read_json(place.target / "pruning_manifest.json")
    hashes = bytes_in(place.target)
    del hashes["pruning_manifest.json"]
    assert {name: entry["sha256"] for name, entry in manifest["files"].items()} == hashes
    weights = place.base.model.path / "model.safetensors"
    assert manifest["base"]["weights_sha256"] == digest_of(
        [[weights.name, digest_of_file(weights)]]
    )
    assert manifest["units"]["ffn"] == {"kept": 144, "total": 192}
    assert manifest["coverage"] == {"layers": "3/3", "neurons": "192/192", "heads": "18/18"}
    assert manifest["proof"]["max_difference"] <= manifest["proof"]["tolerance"]
    assert len(manifest["tensors"]["sliced"]) == 6
    assert len(manifest["tensors"]["compensated"]) == 3
    assert {corpus["licence"] for corpus in manifest["corpora"]} == {"CC0"}
    assert manifest["verdict"] == outcome.manifest["verdict"] == "PASS"
    json.loads((place.target / "pruning_manifest.json").read_text(), parse_constant=pytest.fail)


def test_the_checkpoint_is_the_plans(first: tuple[Place, Outcome]) -> None:
    place, outcome = first
    kept = outcome.manifest["plan"]["layers"][1]["ffn"]
    name = "model.layers.1.mlp.gate_proj.weight"
    before, after = (
        load_file(folder / "model.safetensors")[name]
        for folder in (place.base.model.path, place.target)
    )
    assert torch.equal(after, before[list(kept)])
    assert after.dtype == torch.bfloat16
    ids = some_ids(place.base)
    assert logits(load(place.target, torch.float32), ids).isfinite().all()


def test_the_card_says_what_the_manifest_says(first: tuple[Place, Outcome]) -> None:
    place, outcome = first
    card = (place.target / "README.md").read_text()
    assert "48 of 192 FFN neurons" in card
    assert "Verdict: **PASS**" in card
    assert outcome.manifest["evaluation"]["gates"][0]["sentence"] in card
    assert "the cat" in card


def test_an_identical_run_is_reused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.run, "choose", pytest.fail)
    before = bytes_in(place.target)
    assert place.run().reused
    assert bytes_in(place.target) == before


def test_a_damaged_output_is_made_again(place: Place) -> None:
    good = bytes_in(place.target)
    weights = place.target / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert not place.run().reused
    assert unmeasured(bytes_in(place.target)) == unmeasured(good)


def test_two_runs_give_the_same_bytes(place: Place) -> None:
    before = bytes_in(place.target)
    for folder in ("cache", "out"):
        shutil.rmtree(place.folder / folder)
    place.run()
    assert unmeasured(bytes_in(place.target)) == unmeasured(before)


def test_another_fraction_is_not_scored_again(place: Place) -> None:
    scored, evaluated = place.cached("scoring"), place.cached("evaluation")
    outcome = place.run("select.ffn.fraction=0.5")
    assert place.cached("scoring") == scored
    assert len(place.cached("evaluation") - evaluated) == 2  # the pruned model's tasks alone
    assert outcome.manifest["units"]["ffn"] == {"kept": 96, "total": 192}
    assert any("found in the cache" in line for line in place.said)


def test_a_changed_text_is_scored_again(place: Place) -> None:
    scored = place.cached("scoring")
    old = read_json(place.target / "pruning_manifest.json")["corpora"]
    loaded = tiny_recipe(place.folder / "recipe", place.base.model.path)
    corpus = place.folder / "recipe" / "prose.jsonl"
    with corpus.open("a") as stream:
        for number in range(40):
            stream.write(json.dumps({"text": " ".join(PROSE[number % 9 :]) + " home" * 9}) + "\n")
    progress = Progress("quiet")
    outcome = Run(loaded, Cache(place.folder / "cache"), progress).execute(place.target)
    assert not outcome.reused
    assert len(place.cached("scoring") - scored) == 1  # retain; forget is as it was
    digests = [
        [c["scored_sha256"] for c in corpora] for corpora in (old, outcome.manifest["corpora"])
    ]
    assert digests[0][0] == digests[1][0]
    assert digests[0][1] != digests[1][1]


@pytest.mark.parametrize(
    "stage",
    ["choose", "write_checkpoint", "prove", "evaluate_and_judge", "write_card", "write_manifest"],
)
def test_an_interrupted_run_leaves_what_was_and_continues(
    place: Place, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    before = bytes_in(place.target)
    made = getattr(pipeline.run, stage)

    def interrupt(*arguments: Any, **settings: Any) -> Any:
        made(*arguments, **settings)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.run, stage, interrupt)
        with pytest.raises(KeyboardInterrupt):
            place.run("select.ffn.fraction=0.5")
    assert bytes_in(place.target) == before
    assert os.listdir(place.target.parent) == ["tiny"]
    leftovers = [p for p in (place.folder / "cache").rglob(".*") if p.is_dir()]
    assert leftovers == []
    assert place.run("select.ffn.fraction=0.5").manifest["units"]["ffn"]["kept"] == 96


def test_an_interrupt_within_the_first_evaluation_leaves_no_output(
    tmp_path: Path, first: tuple[Place, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path, first[0].base)

    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lm_eval.evaluator.evaluate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            place.run()
    assert not place.target.parent.exists()  # made to claim the place, and cleared away
    assert place.cached("evaluation") == set()
    assert len(place.cached("scoring")) == 2
    monkeypatch.setattr("pipeline.stages.measure.load_model", pytest.fail)  # scoring is kept
    assert place.run().manifest["verdict"] == "PASS"


def test_a_full_disk_leaves_the_earlier_output(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bytes_in(place.target)
    usage = shutil.disk_usage(place.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(BrokenError, match="no space left on the disk"):
        place.run("select.ffn.fraction=0.5")
    assert bytes_in(place.target) == before
    assert os.listdir(place.target.parent) == ["tiny"]


def test_a_checkpoint_that_fails_its_proof_is_not_released(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bytes_in(place.target)
    made = pipeline.stages.cut.cut_checkpoint

    def tampered(base: Path, target: Path, cuts: Any, *rest: Any) -> Any:
        name = "model.layers.1.mlp.up_proj.weight"
        first_, second, *others = cuts[name].keep
        wrong = replace(cuts[name], entries=(second, first_, *others))
        return made(base, target, cuts | {name: wrong}, *rest)

    monkeypatch.setattr(pipeline.stages.cut, "cut_checkpoint", tampered)
    with pytest.raises(BrokenError, match="does not compute what the masked original computes"):
        place.run("select.ffn.fraction=0.5")
    assert bytes_in(place.target) == before


def test_gates_that_fail_keep_the_output_and_say_so(place: Place) -> None:
    gate = {"task": "next_token_code", "metric": "loss", "drops_at_least": 5.0}
    outcome = place.run(gates=[gate])
    assert outcome.manifest["verdict"] == "FAIL"
    assert read_json(place.target / "evaluation.json")["verdict"] == "FAIL"
    card = (place.target / "README.md").read_text()
    assert "FAIL: this checkpoint did not pass its own gates" in card
    assert (place.target / "model.safetensors").is_file()
    again = place.run(gates=[gate])
    assert again.reused
    assert again.manifest["verdict"] == "FAIL"


def test_heads_are_cut_and_compensated_end_to_end(place: Place) -> None:
    outcome = place.run("select.attention.fraction=0.34", "select.steps=2")
    manifest = outcome.manifest
    assert manifest["units"]["kv_heads"] == {"kept": 6, "total": 9}
    assert manifest["units"]["query_heads"] == {"kept": 12, "total": 18}
    assert "model.layers.0.self_attn.o_proj.weight" in manifest["tensors"]["compensated"]
    config = read_json(place.target / "config.json")
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (4, 2)
    assert "kv heads" in (place.target / "README.md").read_text()


def test_an_edited_task_is_another_run(place: Place) -> None:
    tasks = place.folder / "recipe" / "tasks"
    tasks.mkdir()
    rows = [{"question": "the cat", "choices": PROSE[:4], "gold": n % 4} for n in range(8)]
    data = tasks / "words.json"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate = {
        "next_token_tokens": 200,
        "dtype": "float32",
        "task_folders": ["tasks"],
        "tasks": [{"task": "choose_a_word", "side": "retain"}],
    }
    for prompt, reused in (("question", False), ("question", True), ("'a mat'", False)):
        text = TASK.format(data=data, cache=place.folder / "datasets", prompt=prompt)
        (tasks / "words.yaml").write_text(text)
        assert place.run(evaluate=evaluate).reused is reused
    data.write_text(data.read_text().splitlines()[0] + "\n")  # it is asked less
    assert not place.run(evaluate=evaluate).reused


def test_an_edited_setting_of_the_base_is_another_run(place: Place, tmp_path: Path) -> None:
    """The same weights under another config activate otherwise."""
    shutil.copytree(place.base.model.path, tmp_path / "base")
    place.base = replace(place.base, model=replace(place.base.model, path=tmp_path / "base"))
    assert not place.run().reused  # another path
    plan = read_json(place.target / "pruning_manifest.json")["plan"]
    scored = place.cached("scoring")
    config = read_json(tmp_path / "base/config.json")
    write_json(tmp_path / "base/config.json", config | {"rms_norm_eps": 10.0, "rope_theta": 3.0})
    assert not place.run().reused
    assert len(place.cached("scoring") - scored) == 2
    assert read_json(place.target / "config.json")["rms_norm_eps"] == 10.0
    assert read_json(place.target / "pruning_manifest.json")["plan"] != plan
    scored = place.cached("scoring")
    (tmp_path / "base/chat_template.jinja").write_text("{{ messages }}")
    assert not place.run().reused
    assert (place.target / "chat_template.jinja").read_text() == "{{ messages }}"
    assert place.cached("scoring") == scored
    assert place.run().reused


def test_a_stranger_in_the_output_is_found_before_any_work(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.target / "notes.txt").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.run, "resolve_model", pytest.fail)
        with pytest.raises(InputError, match=r"notes\.txt"):
            place.run("seed=1")
    place.run("seed=1", force=True)
    assert not (place.target / "notes.txt").exists()


def test_a_file_that_appears_during_the_run_is_not_lost(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = place.run().folder
    before = bytes_in(target)

    def put_a_note(folder: Path, manifest: dict[str, Any]) -> None:
        (target / "notes.txt").write_text("mine")

    monkeypatch.setattr(pipeline.run, "write_card", put_a_note)
    with pytest.raises(InputError, match=r"notes\.txt"):
        place.run("select.ffn.fraction=0.5")
    assert bytes_in(target).items() > before.items()


def test_an_architecture_that_nobody_knows_is_the_readers_error(
    tmp_path: Path, place: Place
) -> None:
    """Of those that transformers knows, and of those that it does not."""
    for model_type in ("mamba", "gollum"):
        folder = tmp_path / model_type
        shutil.copytree(place.base.model.path, folder)
        config = read_json(folder / "config.json") | {"model_type": model_type}
        (folder / "config.json").write_text(json.dumps(config))
        path = write_recipe(tmp_path / f"{model_type}-recipe", folder)
        loaded = pipeline.recipe_file.load_recipe(str(path))
        with pytest.raises(InputError, match=f"architecture '{model_type}' is not described"):
            Run(loaded, Cache(tmp_path / "cache"), Progress("quiet")).execute(tmp_path / "out")
        assert not (tmp_path / "out").exists()
