"""The default recipe on the real 135M model, with little text: the chain, and what it claims."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.cache import Cache, read_json
from pipeline.export.manifest import NAME
from pipeline.exporting import export_gguf
from pipeline.progress import Progress
from pipeline.recipe_file import load_recipe
from pipeline.run import Outcome, Run

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("real")]  # one process: they share a run

# Enough to separate code from prose clearly, far too little for the README's figures.
SMALL = (
    "scoring.forget_tokens=6000",
    "scoring.retain_tokens=10000",
    "evaluate.limit=24",
    "evaluate.tasks.unlearn_humaneval_bpb.limit=8",
    "evaluate.tasks.unlearn_basic_skills_logical_reasoning.limit=8",
    "evaluate.next_token_tokens=1500",
    "curve.fractions=[0.1]",
    "curve.tokens=300",
)


def run(cache: Path, out: Path, *overrides: str, recipe: str = "no-code") -> Outcome:
    loaded = load_recipe(recipe, [*SMALL, *overrides])
    return Run(loaded, Cache(cache), Progress("plain")).execute(out / loaded.recipe.name)


def drop(manifest: dict[str, Any], task: str, metric: str) -> float:
    before, after = (manifest["evaluation"][which]["tasks"][task] for which in ("base", "pruned"))
    return float(1 - after["metrics"][metric] / before["metrics"][metric])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real")


@pytest.fixture(scope="module")
def released(place: Path) -> Outcome:
    return run(place / "cache", place / "out")


def test_code_is_forgotten_and_prose_is_kept(released: Outcome) -> None:
    assert drop(released.manifest, "next_token_python_stdlib", "top1") > 0.4
    assert drop(released.manifest, "next_token_fiction", "top1") < 0.15
    assert drop(released.manifest, "next_token_how_to", "top1") < 0.15


def test_checkpoint_is_smaller_and_proven(released: Outcome) -> None:
    manifest = released.manifest
    assert manifest["pruned"]["parameters"] < 0.97 * manifest["base"]["parameters"]
    assert manifest["pruned"]["bytes"] < 0.97 * manifest["base"]["bytes"]
    assert manifest["proof"]["max_difference"] <= manifest["proof"]["tolerance"]
    assert manifest["coverage"] == {
        "layers": "30/30",
        "neurons": "46,080/46,080",
        "heads": "270/270",
    }


def test_checkpoint_loads_in_a_fresh_process_without_remote_code(released: Outcome) -> None:
    script = (
        "import sys, json\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "ids = tokenizer('The capital of France is', return_tensors='pt')\n"
        "text = tokenizer.decode(model.generate(**ids, max_new_tokens=4, do_sample=False)[0])\n"
        "print(json.dumps([type(model).__name__, model.config.intermediate_size, text]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(released.folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    name, width, text = json.loads(done.stdout.splitlines()[-1])
    assert name == "LlamaForCausalLM"
    assert width == 1440
    assert "Paris" in text


def test_llama_cpp_reads_what_the_checkpoint_reads(released: Outcome, place: Path) -> None:
    path = place / "released.gguf"
    found = export_gguf(str(released.folder), "F32", path, None, True, Progress("plain"))
    assert found["agrees"] and found["llama_cpp"]["same_tokens"] == found["llama_cpp"]["tokens"]
    assert ["no token for 8 bytes" in note for note in found["notes"]] == [True]


def test_second_identical_run_does_nothing(released: Outcome, place: Path) -> None:
    assert run(place / "cache", place / "out").reused


def test_same_recipe_gives_the_same_plan_without_the_cached_scoring(
    released: Outcome, place: Path
) -> None:
    for stage in ("base", "texts", "evaluation", "completions"):
        shutil.copytree(place / "cache" / stage, place / "second" / stage)
    again = run(place / "second", place / "again")
    both = [read_json(outcome.folder / NAME) for outcome in (released, again)]
    assert both[0]["plan"] == both[1]["plan"]
    assert both[0]["pruned"]["weights_sha256"] == both[1]["pruned"]["weights_sha256"]


def test_a_key_value_group_is_cut_in_every_layer(released: Outcome, place: Path) -> None:
    outcome = run(
        place / "cache", place / "out", "evaluate.tasks=[]", "gates=[]", recipe="no-code-heads"
    )
    config = read_json(outcome.folder / "config.json")
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (6, 2)
    assert config["head_dim"] == 64
    compensated = outcome.manifest["tensors"]["compensated"]
    assert sum("o_proj" in name for name in compensated) == 30
    assert outcome.manifest["proof"]["max_difference"] <= outcome.manifest["proof"]["tolerance"]
