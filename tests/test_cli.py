"""The command: its output, its errors and its exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Unlearn
from tiny_recipe import write_recipe

import pipeline.forecast
import pipeline.run
from pipeline import __version__
from pipeline.cache import read_json
from pipeline.errors import BrokenError
from pipeline.stages.base import Base

TinyBase = Callable[..., Base]
FAILING = [{"task": "next_token_code", "metric": "loss", "drops_at_least": 5.0}]


@pytest.fixture
def recipe(tmp_path: Path, tiny_base: TinyBase) -> Path:
    return write_recipe(tmp_path / "recipe", tiny_base("llama").model.path)


def objects(text: str) -> list[Any]:
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


# ── run ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_prints_stages_and_one_table(unlearn: Unlearn, recipe: Path) -> None:
    code, out, err = unlearn("run", recipe)
    assert code == 0
    for stage in ("Base model", "Texts", "Scoring and selection", "Surgery", "Proof", "Evaluation"):
        assert f"> {stage}" in err
    for word in ("parameters", "next_token_prose top1", "Verdict: PASS", "Where:", "out/tiny"):
        assert word in out
    assert "\x1b[" not in out + err  # no terminal, no colours


def test_json_is_one_object_a_line(unlearn: Unlearn, recipe: Path) -> None:
    code, out, err = unlearn("run", recipe, "--json", "--out", "other")
    assert code == 0
    (result,) = objects(out)
    assert result["event"] == "result"
    assert result["verdict"] == "PASS"
    assert result["folder"] == "other/tiny"
    assert {event["event"] for event in objects(err)} >= {"stage", "message"}


def test_json_has_null_where_there_is_no_number(unlearn: Unlearn, recipe: Path) -> None:
    gate = "gates=[{task: next_token_code, metric: top1, drops_at_least: 0.5, scale: above_chance, "
    gate += "chance: 1.0}]"
    code, out, _ = unlearn("run", recipe, "--json", "--out", "no-number", "--set", gate)
    assert code == 4
    (result,) = objects(out)
    assert result["gates"][0]["drop"] is None


def test_quiet_prints_the_result_only(unlearn: Unlearn, recipe: Path) -> None:
    code, out, err = unlearn("run", recipe, "--quiet")
    assert code == 0
    assert err == ""
    assert "Verdict: PASS" in out


def test_gates_that_fail_are_exit_code_1(unlearn: Unlearn, tmp_path: Path, recipe: Path) -> None:
    write_recipe(recipe.parent, read_model(recipe), gates=FAILING)
    for _ in range(2):  # when it is made, and when it is found again
        code, out, _ = unlearn("run", recipe, "--quiet")
        assert code == 1
        assert "Verdict: FAIL" in out
    assert "**FAIL" in (tmp_path / "out/tiny/README.md").read_text()


def read_model(recipe: Path) -> Path:
    line = next(line for line in recipe.read_text().splitlines() if "path: /" in line)
    return Path(line.split("path: ")[1])


def test_fields_are_overridden(unlearn: Unlearn, tmp_path: Path, recipe: Path) -> None:
    assert unlearn("run", recipe, "-q", "--set", "select.ffn.fraction=0.5").code == 0
    manifest = read_json(tmp_path / "out/tiny/pruning_manifest.json")
    assert manifest["units"]["ffn"]["kept"] == 96
    assert manifest["recipe"]["select"]["ffn"]["fraction"] == 0.5


def test_a_foreign_folder_is_left_alone_without_force(
    unlearn: Unlearn, tmp_path: Path, recipe: Path
) -> None:
    (tmp_path / "out/tiny").mkdir(parents=True)
    (tmp_path / "out/tiny/notes.txt").write_text("mine")
    code, out, err = unlearn("run", recipe)
    assert (code, out) == (2, "")
    assert "not touched" in err and "--force" in err
    assert (tmp_path / "out/tiny/notes.txt").read_text() == "mine"
    assert unlearn("run", recipe, "-q", "--force").code == 0
    assert not (tmp_path / "out/tiny/notes.txt").exists()


def test_a_place_that_cannot_be_written_to_is_exit_code_2(
    unlearn: Unlearn, tmp_path: Path, recipe: Path
) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = unlearn("run", recipe, "--out", "file/out")
    assert code == 2
    assert "this is a file, so no folder can be made in it" in err and "--out" in err


# ── errors ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("verb", ["run", "check"])
def test_a_recipe_that_does_not_exist_lists_near_names(unlearn: Unlearn, verb: str) -> None:
    code, out, err = unlearn(verb, "no-cod")
    assert (code, out) == (2, "")
    assert "there is no recipe 'no-cod'" in err
    assert "did you mean no-code" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("verb", ["run", "check"])
@pytest.mark.parametrize("model_type", ["mamba", "gollum"])
def test_an_unknown_architecture_is_exit_code_2_and_named(
    unlearn: Unlearn, tmp_path: Path, recipe: Path, verb: str, model_type: str
) -> None:
    shutil.copytree(read_model(recipe), tmp_path / "model")
    config = read_json(tmp_path / "model/config.json") | {"model_type": model_type}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    write_recipe(recipe.parent, tmp_path / "model")
    code, _, err = unlearn(verb, recipe)
    assert code == 2
    assert f"architecture {model_type!r} is not described; described are: bloom, codegen" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments", [["run"], ["run", "x", "--nonsense"], ["dance"], ["run", "x", "--set"]]
)
def test_a_wrong_command_line_is_exit_code_2(unlearn: Unlearn, arguments: list[str]) -> None:
    code, _, err = unlearn(*arguments)
    assert code == 2
    assert err.startswith("unlearn: ")
    assert "--help` says what is possible" in err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (BrokenError("the disk is gone", where="/x"), 3, "unlearn: /x: the disk is gone"),
        (KeyboardInterrupt(), 130, "unlearn: interrupted\n  → the same command continues"),
        (RuntimeError("oops"), 3, "something broke that should not have: RuntimeError: oops"),
    ],
)
def test_errors_have_their_exit_codes_and_no_traceback(
    unlearn: Unlearn,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: BaseException,
    code: int,
    words: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(pipeline.run, "resolve_model", fail)
    result = unlearn("run", recipe, "-q")
    assert (result.code, result.out) == (code, "")
    assert words in result.err
    assert "Traceback" not in result.err
    logs = list(tmp_path.glob("unlearn-*.log"))
    assert len(logs) == isinstance(error, RuntimeError)
    assert all("Traceback" in log.read_text() for log in logs)


def test_an_error_is_an_object_too_where_objects_are_asked_for(unlearn: Unlearn) -> None:
    code, out, err = unlearn("run", "no-cod", "--json")
    assert (code, out) == (2, "")
    (error,) = objects(err)
    assert error["event"] == "error"
    assert error["exit_code"] == 2
    assert "no-cod" in error["what"] and "no-code" in error["remedy"]


def test_a_termination_signal_leaves_nothing_and_the_command_continues(
    tmp_path: Path, recipe: Path, warm_cache: Path
) -> None:
    script = """
import os, signal, sys
import pipeline.forecast
import pipeline.run
from pipeline import cli
def stop(*_, **__):
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()
pipeline.run.evaluate_and_judge = stop
cli.main()
"""
    arguments = ["run", str(recipe), "--out", str(tmp_path / "out")]
    environment = os.environ | {"UNLEARN_CACHE": str(warm_cache)}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 130
    assert "unlearn: interrupted" in done.stderr
    assert not (tmp_path / "out").exists()


# ── the other verbs ──────────────────────────────────────────────────────────────────────────────


def test_check_says_what_would_happen_and_writes_nothing(
    unlearn: Unlearn, tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "untouched"))
    before = sorted(tmp_path.rglob("*"))
    code, out, err = unlearn("check", recipe)
    assert code == 0
    assert [line for line in err.splitlines() if line[0] == ">"] == [
        "> Base model",
        "> Texts",
        "> Tasks and gates",
    ]
    assert unlearn("check", recipe, "--quiet").err == ""
    assert "about 1 min on this machine" in out
    assert "FFN neurons: 64 → 48 in each of 3 layers (48 of 192 removed, 25.0%)" in out
    assert "next_token_prose loss drops at most 900.0% of itself" in out
    code, out, _ = unlearn("check", recipe, "--json")
    (forecast,) = objects(out)
    assert {corpus["name"] for corpus in forecast["corpora"]} == {"code", "prose"}
    assert forecast["model"]["architecture"] == "llama"
    stored = sum(file.stat().st_size for file in read_model(recipe).glob("*.safetensors"))
    assert forecast["model"]["parameters"] * 4 == pytest.approx(stored, rel=0.05)
    assert sorted(tmp_path.rglob("*")) == before


ATTENTION = "select.attention.fraction=0.34"


@pytest.mark.parametrize(
    ("overrides", "moments"),
    [
        ([ATTENTION], 64**2 + 48**2),
        ([ATTENTION, "select.ffn.fraction=0"], 48**2),
        ([], 64**2),
        (["select.steps=2"], 2 * 64**2),
        (["compensate.publish_maps=false"], 64**2),
        (["compensate.enabled=false"], 0),
    ],
)
def test_check_forecasts_what_the_run_makes(
    unlearn: Unlearn, tmp_path: Path, recipe: Path, overrides: list[str], moments: int
) -> None:
    options = [part for one in overrides for part in ("--set", one)]
    cache = tmp_path / "own-cache"
    _, out, _ = unlearn("check", recipe, "--json", *options)
    (forecast,) = objects(out)
    unlearn("run", recipe, "-q", *options, "--cache-dir", cache)
    manifest = read_json(tmp_path / "out/tiny/pruning_manifest.json")
    assert forecast["model"]["parameters"] == manifest["base"]["parameters"]
    scored = {corpus["name"]: corpus["scored_tokens"] for corpus in forecast["corpora"]}
    assert scored == {"code": 19 * 32, "prose": 29 * 32}  # whole sequences
    units = manifest["units"]
    for line, kind in zip(forecast["units"], ("ffn", "query_heads", "kv_heads"), strict=True):
        gone = units[kind]["total"] - units[kind]["kept"]
        assert f"({gone} of {units[kind]['total']} removed" in line
    tensors = [*(tmp_path / "out/tiny").rglob("*.safetensors")]
    assert forecast["output_bytes"] == pytest.approx(sizes(tensors), rel=0.03)
    layers = sizes(cache.glob("scoring/*/layer_*.safetensors"))
    assert forecast["cache_bytes"] == moments * 4 * 3
    assert forecast["cache_bytes"] == pytest.approx(layers, rel=0.05)
    asked = {task["task"]: task["documents"] for task in forecast["tasks"]}
    evaluated = manifest["evaluation"]["pruned"]["tasks"]
    assert asked == {name: result["n"] for name, result in evaluated.items()}


def sizes(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def test_check_says_what_will_not_come_out_as_asked(unlearn: Unlearn, recipe: Path) -> None:
    code, out, _ = unlearn("check", recipe, "--set", "select.ffn.fraction=0.3")
    assert code == 0
    assert "25.0%); 30.0% asked, widths are multiples of 8" in out


def test_check_counts_the_documents_that_the_evaluation_would_ask(
    unlearn: Unlearn, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--set", "statistics.min_documents=15"]
    (forecast,) = objects(unlearn("check", recipe, "--json").out)
    held_out = {each["name"]: each["held_out_documents"] for each in forecast["corpora"]}
    assert min(held_out.values()) > 15
    _, out, _ = unlearn("check", recipe, *options)
    assert re.search(r"next_token_prose has \d documents: its gate will be INCONCLUSIVE", out)
    _, out, _ = unlearn("check", recipe, *options, "--set", "evaluate.next_token_tokens=100000")
    assert "INCONCLUSIVE" not in out
    made = pipeline.forecast.described
    monkeypatch.setattr(  # as for a GGUF that is not yet converted
        "pipeline.forecast.described", lambda model: replace(made(model), tokenizer=None)
    )
    _, out, _ = unlearn("check", recipe, "--set", "statistics.min_documents=100")
    for name, documents in held_out.items():
        assert re.search(rf"next_token_{name} .*at most {documents} ", out)
    assert f"prose has at most {held_out['prose']} documents: its gate will be INCONCL" in out


def test_a_run_says_that_it_replaces_an_earlier_output(unlearn: Unlearn, recipe: Path) -> None:
    _, _, err = unlearn("run", recipe)
    assert "earlier output" not in err
    _, _, err = unlearn("run", recipe, "--set", "select.ffn.fraction=0.5")
    assert "out/tiny holds an earlier output (PASS), which this run will replace" in err


def test_inspect_says_what_a_model_is_made_of(unlearn: Unlearn, tiny_base: TinyBase) -> None:
    base = tiny_base("llama")
    code, out, _ = unlearn("inspect", base.model.path)
    assert code == 0
    assert "64 FFN neurons, 6 query heads and 3 key/value heads of 8 in each layer" in out
    assert "whole groups (select.attention.unit=kv_group): 2, 4 query heads" in out
    assert "select.ffn.fraction=0.3 → 32 neurons in each layer" in out
    assert "select.attention.fraction=0.333 → 4 query heads in each layer" in out
    code, out, _ = unlearn("inspect", base.model.path, "--json")
    (found,) = objects(out)
    counted = {kind: n for kind, n in found["parameters"].items() if kind != "total"}
    assert sum(counted.values()) == found["parameters"]["total"]
    assert found["parameters"]["total"] == sum(
        torch.Size(tensor.shape).numel() for tensor in base.tensors.values()
    )
    assert counted["ffn"] == 3 * 3 * 48 * 64
    bloom = tiny_base("bloom")
    _, out, _ = unlearn("inspect", bloom.model.path)
    assert "192 only; policy padded leaves zeros" in out
    _, out, _ = unlearn("inspect", bloom.model.path, "--json")
    (found,) = objects(out)
    widths = (160, 160, 160, 128)  # of fractions 0.05 to 0.3, the nearest multiples of 32
    left = [row["parameters"] - found["parameters"]["total"] for row in found["shrink"]]
    assert left == [-3 * (192 - width) * (48 + 1 + 48) for width in widths]
    _, out, _ = unlearn("inspect", tiny_base("olmo2").model.path)
    assert "none can go: queries and keys are normalised over all heads together" in out
    assert unlearn("inspect", "gone").code == 2


@pytest.mark.parametrize("family", ["phi3_long", "phi_normed"])
def test_heads_that_a_config_cannot_say_are_not_promised(
    unlearn: Unlearn, tiny_base: TinyBase, family: str
) -> None:
    code, out, _ = unlearn("inspect", tiny_base(family).model.path)
    assert code == 0 and "no smaller number; policy padded leaves zeros in their place" in out


def test_what_is_said_of_a_mixture_of_experts(
    unlearn: Unlearn, tiny_base: TinyBase, tmp_path: Path
) -> None:
    base = tiny_base("qwen2_moe")
    _, out, _ = unlearn("inspect", base.model.path)
    assert "32 FFN neurons in each of 4 experts, 48 in the shared one, 6 query heads" in out
    _, out, _ = unlearn("inspect", base.model.path, "--json")
    (found,) = objects(out)
    assert found["parameters"]["ffn"] == 3 * 3 * 48 * (4 * 32 + 48)
    assert found["parameters_of_a_unit"]["ffn"] == 3 * 48
    assert found["expert_counts"] == "any from 2, as many as a token takes, to 4"
    assert found["ffn_widths"].startswith("any multiple of 8 below 32, the same in every expert")
    experts = [row for row in found["shrink"] if "experts" in row["setting"]]
    assert [row["units"] for row in experts] == ["3 experts"] * 4
    assert experts[0]["parameters"] == found["parameters"]["total"] - 3 * (3 * 48 * 32 + 48)
    recipe = write_recipe(tmp_path / "recipe", base.model.path)
    _, out, _ = unlearn("check", recipe, "--set", "select.experts.fraction=0.5")
    for line in (
        "FFN neurons of each routed expert: 32 → 24 in each of 3 layers (96 of 384 removed, 25.0%)",
        "routed experts: 4 → 2 in each of 3 layers (6 of 12 removed, 50.0%)",
        "neurons of the shared expert: 48 → 32 in each of 3 layers",
    ):
        assert line in " ".join(out.split()), out


def test_a_shape_that_the_family_cannot_have_is_refused(
    unlearn: Unlearn, tiny_base: TinyBase, tmp_path: Path
) -> None:
    for family, overrides, words in (
        ("bloom", [], "the number of FFN neurons is fixed in this architecture"),
        ("gpt2", ["select.attention.fraction=0.3"], "no smaller number can be expressed"),
        ("olmo2", ["select.attention.fraction=0.3"], "heads cannot be removed"),
        ("gemma2", ["select.attention.relabel=true"], "no other family computes what a gemma2"),
        ("llama", ["select.experts.fraction=0.3"], "this model is no mixture of experts"),
        ("mixtral", ["select.ffn.multiple_of=5"], "cannot be multiplied in groups"),
        ("mixtral", ["select.policy=ragged"], "mixture of experts cannot have the shape ragged"),
        ("mixtral", ["select.policy=padded"], "mixture of experts cannot have the shape padded"),
    ):
        recipe = write_recipe(tmp_path / family, tiny_base(family).model.path)
        options = [part for one in overrides for part in ("--set", one)]
        for verb in ("check", "run"):
            result = unlearn(verb, recipe, *options)
            assert result.code == 2 and words in result.err, (family, result)
    recipe = write_recipe(tmp_path / "last", tiny_base("olmo2").model.path)
    code, out, _ = unlearn("check", recipe, "--set", "select.policy=padded")
    assert code == 0
    assert "on average in each of 3 layers" in out and "(policy padded)" in out


def test_check_and_run_say_which_number_of_heads_is_the_nearest(
    unlearn: Unlearn, tiny_base: TinyBase, tmp_path: Path
) -> None:
    base = tiny_base("llama", num_key_value_heads=6)
    recipe = write_recipe(tmp_path / "recipe", base.model.path)
    _, out, _ = unlearn("check", recipe, "--set", "select.attention.fraction=0.2")
    note = "20.0% asked, 4 a layer is the nearest number"  # five do not divide 48
    line = f"query heads: 6 → 4 in each of 3 layers (6 of 18 removed, 33.3%); {note}"
    assert line in " ".join(out.split())
    _, _, err = unlearn("run", recipe, "--set", "select.attention.fraction=0.2")
    assert f"query_heads: 6 of 18 removed (33.3%); {note}" in " ".join(err.split())
    ragged = ["--set", "select.policy=ragged", "--set", "select.attention.fraction=0.12"]
    _, out, _ = unlearn("check", recipe, *ragged)
    line = "query heads: 6 → 5.333 on average in each of 3 layers (2 of 18 removed, 11.1%)"
    assert line in " ".join(out.split()) and "nearest number" not in out
    _, _, err = unlearn("run", recipe, *ragged)
    assert "query_heads: 2 of 18 removed (11.1%)" in " ".join(err.split())
    padded = ["--set", "select.policy=padded", "--set", "select.attention.fraction=0.2"]
    relabelled = ["--set", "select.attention.relabel=true"]
    line = (
        "(3 of 18 removed, 16.7%); 20.0% asked, 5 a layer is the nearest number that whole groups"
    )
    zeros = "zeros stand in the place of what goes, and nothing gets smaller by it"
    _, out, _ = unlearn("check", recipe, *padded)
    assert f"{line} can have; {zeros}" in " ".join(out.split()) and out.count("zeros stand") == 1
    _, out, _ = unlearn("check", recipe, *padded, *relabelled)
    assert f"{line} can have" in " ".join(out.split()) and zeros not in " ".join(out.split())
    _, out, _ = unlearn("check", recipe, "--set", "select.attention.fraction=0.2", *relabelled)
    assert "query heads: 6 → 5 in each of 3 layers" in " ".join(out.split())


@pytest.mark.parametrize(
    ("family", "policy", "zeros"),
    [
        ("gpt2", "padded", True),
        ("gpt2", "ragged", False),
        ("mpt", "ragged", True),
        ("qwen3", "padded", False),
    ],
)
def test_check_says_which_heads_stay_as_zeros(
    unlearn: Unlearn, tiny_base: TinyBase, tmp_path: Path, family: str, policy: str, zeros: bool
) -> None:
    recipe = write_recipe(tmp_path / "recipe", tiny_base(family).model.path)
    options = [f"select.policy={policy}", "select.attention.fraction=0.34"]
    _, out, _ = unlearn("check", recipe, *(part for one in options for part in ("--set", one)))
    words = " ".join(out.split())
    assert "query heads: 6 → 4 " in words
    assert ("zeros stand in the place of what goes" in words) is zeros
    assert "this model's config" not in words


def test_recipes_schema_version_and_help(unlearn: Unlearn) -> None:
    assert "no-code" in unlearn("recipes").out
    assert "no-code" in {entry["name"] for entry in json.loads(unlearn("recipes", "--json").out)}
    assert "properties" in json.loads(unlearn("schema").out)
    assert unlearn("--version").out.strip() == __version__
    code, out, _ = unlearn("run", "--help")
    assert code == 0
    assert "--set" in out
