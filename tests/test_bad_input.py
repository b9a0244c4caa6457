"""Everything that a user can get wrong: one clear error, the right exit code, and nothing lost."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Result, Unlearn
from huggingface_hub import constants
from safetensors import SafetensorError
from tiny_models import make_model
from tiny_recipe import write_recipe

from pipeline import cli
from pipeline.cache import read_json, write_json
from pipeline.stages.output import claimed

WEIGHTS = "model.safetensors"


Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def recipe(tmp_path: Path, model: Path) -> Path:
    return write_recipe(tmp_path / "recipe", model)


@pytest.fixture
def unlearn(unlearn: Unlearn) -> Unlearn:
    """Run the command quietly: what is on stderr is the error and nothing else."""

    def call(verb: str, *arguments: str | Path) -> Result:
        quiet = ["--quiet"] if verb in ("run", "check") and "--json" not in arguments else []
        return unlearn(verb, *arguments, *quiet)

    return call


def assert_refused(result: Result, *words: str, code: int = 2) -> None:
    """An error says what, where and what to do, in a few lines, and nothing else is printed."""
    assert (result.code, result.out) == (code, ""), result
    assert result.err.startswith("unlearn: ")
    assert "Traceback" not in result.err
    assert "something broke" not in result.err
    assert "Warning" not in result.err
    for word in words:
        assert word in result.err


def leftovers(*folders: Path) -> list[str]:
    """Temporary folders of unfinished work."""
    return [path.name for folder in folders for path in folder.rglob(".*")]


# ── recipes ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name: a\n b: [1,\n", "bad.yaml:2:3"),
        (b"name: a\n\tb: 1\n", "indent with spaces"),
        (b"", "the recipe is empty"),
        (b"- a\n", "expected a section"),
        (b"\x00\xff\xfe", "not UTF-8"),
        (b"name: a\x00b\n", "bad.yaml:1"),
        (b"a: &a [*a]\n", "bad.yaml:1"),
        (b"name: a\nname: b\n", "second time"),
    ],
)
def test_broken_recipes(unlearn: Unlearn, tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "bad.yaml").write_bytes(content)
    for verb in ("run", "check"):
        assert_refused(unlearn(verb, "bad.yaml"), "bad.yaml", words)


@pytest.mark.parametrize("name", ["no-cod", "nope.yaml", "recipe", ""])
def test_recipes_that_do_not_exist(unlearn: Unlearn, recipe: Path, name: str) -> None:
    assert_refused(unlearn("run", name), "there is no recipe", "no-code")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("select.ffn.fraction=0", "nothing would be removed"),
        ("select.ffn.fraction=1", "expected a number ≥ 0 and < 1, got 1"),
        ("select.ffn.fraction=1.5", "got 1.5"),
        ("select.ffn.fraction=-0.1", "got -0.1"),
        ("select.ffn.fraction=ten", 'got "ten"'),
        ("select.ffn.fraction=.nan", "finite"),
        ("select.ffn.fraction", "expected key=value"),
        ("=3", "expected key=value"),
        ("select.ffn.fraction=[", "--set"),
        ("selct.ffn.fraction=0.1", "did you mean `select`?"),
        ("select.ffn.fractoin=0.1", "did you mean `fraction`?"),
        ("select.ffn.importance=rsm", "did you mean `rms`?"),
        ("select.ffn.score=ratoi", "did you mean `ratio`?"),
        ("scoring.forget_tokens=-5", "> 0, got -5"),
        ("scoring.sequence_length=0", "≥ 8, got 0"),
        ("scoring.skip_positions=32", "no position"),
        ("seed=-1", "≥ 0, got -1"),
        ("name=../x", "lower-case"),
        ("forget=[]", "at least one item"),
        ("forget.9.name=x", "no item `9`"),
        ("gates.0.task=next_token_pros", "did you mean `next_token_prose`?"),
        ("gates.0.drops_at_least=1", "exactly one"),
        ("evaluate.limit=0", "> 0, got 0"),
        ("compensate.ridge=0", "> 0, got 0"),
    ],
)
def test_wrong_values(unlearn: Unlearn, recipe: Path, override: str, words: str) -> None:
    assert_refused(unlearn("run", recipe, "--set", override), words)
    assert not Path("out").exists()


NO_TASK = "[{task: nonsense_task, side: forget}]"


@pytest.mark.parametrize(
    ("override", "also", "words"),
    [
        ("gates.0.metric=top2", [], "did you mean top1?"),
        (f"evaluate.tasks={NO_TASK}", [], "there is no task 'nonsense_task'"),
        ("evaluate.task_folders=[gone]", [f"evaluate.tasks={NO_TASK}"], "gone: this folder of"),
        ("select.ffn.multiple_of=1000", [], "cannot shrink to a multiple of 1000"),
        ("select.ffn.multiple_of=64", [], "cannot shrink to a multiple of 64"),
        ("select.steps=100000", [], "100000 steps cannot share"),
        ("scoring.sequence_length=513", [], "the model knows 512 positions"),
        ("forget.0.exclude=def|return", ["scoring.sequence_length=400"], "less than one sequence"),
    ],
)
def test_what_cannot_work_is_found_before_scoring(
    unlearn: Unlearn,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    override: str,
    also: list[str],
    words: str,
) -> None:
    monkeypatch.setattr("pipeline.stages.measure.load_model", pytest.fail)
    folders = [] if "folders" in override else ["--set", "evaluate.task_folders=[]"]
    more = [part for one in also for part in ("--set", one)]
    for verb in ("run", "check"):
        assert_refused(unlearn(verb, recipe, "--set", override, *more, *folders), words)


# ── texts ────────────────────────────────────────────────────────────────────────────────────────

PROSE = b"the cat sat on a mat while seven dogs ran home. " * 40


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("c.txt", b"", "c.txt: the file is empty"),
        ("c.txt", b" \n\n", "c.txt: the file holds nothing but white space"),
        ("c.txt", b"\0\1\2" * 100, "c.txt: this is a binary file"),
        ("c.txt", PROSE + b"caf\xe9", "c.txt: this is not UTF-8 text (byte 1923)"),
        ("c.txt", b"hello world", "corpus code: it has too few documents to be split"),
        ("c.jsonl", b'{"text": "abc"}\n{"text": \n', "c.jsonl:2: this line is not JSON"),
        ("c.jsonl", b"[1, 2]\n", "c.jsonl:1: a row is"),
        ("c.jsonl", b'{"text": ""}\n', "no documents in it (1 rows read"),
        ("c.jsonl", b'{"text": 3}\n', "`{{ text }}`"),
        ("c.jsonl", b'{"text": ["a"]}\n', "`{{ text | join(' ') }}`"),
        ("c.jsonl", b'{"words": "a"}\n', "columns are: words"),
        ("c.json", b"[" * 100_000, "nested too deeply"),
        ("c.csv", b"text,b\n1,2,3\n", "c.csv:2"),
        ("c.parquet", b"PAR1xxxx", "Parquet file is damaged"),
        ("c.arrow", b"ARROW1xxxx", "Arrow file is damaged"),
        ("c.txt.gz", b"xxxx", "gzip file is damaged"),
        ("c.txt.gz", b"\x1f\x8b\x08\x00" + b"\0" * 30, "gzip file is damaged"),
        ("c.txt.gz", gzip.compress(PROSE, mtime=0)[:-12], "gzip file is damaged"),
    ],
)
def test_broken_texts(
    unlearn: Unlearn, recipe: Path, name: str, content: bytes, words: str
) -> None:
    (recipe.parent / name).write_bytes(content)
    for verb in ("run", "check"):
        assert_refused(
            unlearn(verb, recipe, "--set", f"forget.code.source.path=recipe/{name}"), words
        )


@pytest.mark.parametrize(("content", "words"), [(b"", "is empty"), (b"\0" * 9, "binary")])
def test_one_broken_file_of_many(
    unlearn: Unlearn, recipe: Path, content: bytes, words: str
) -> None:
    folder = recipe.parent / "texts"
    folder.mkdir()
    (folder / "a.txt").write_bytes(PROSE)
    (folder / "b.txt").write_bytes(content)
    result = unlearn("run", recipe, "--set", "forget.code.source.path=recipe/texts")
    assert_refused(result, "b.txt", words, "leave it out")


def test_an_empty_folder_and_a_pattern_that_matches_nothing(unlearn: Unlearn, recipe: Path) -> None:
    (recipe.parent / "texts").mkdir()
    for path in ("texts", "texts/*.md", "gone.txt"):
        result = unlearn("run", recipe, "--set", f"forget.code.source.path=recipe/{path}")
        assert_refused(result, path, "there is no such file")


def test_forget_equal_to_retain(unlearn: Unlearn, recipe: Path) -> None:
    result = unlearn("run", recipe, "--set", "forget.code.source.path=recipe/prose.jsonl")
    assert_refused(result, "corpora code and prose", "in forget and in retain: “")


def test_too_little_text_for_one_sequence(unlearn: Unlearn, recipe: Path) -> None:
    result = unlearn("run", recipe, "--set", "scoring.sequence_length=100000")
    assert_refused(result, "less than one sequence of 100000", "give more text")


# ── models ───────────────────────────────────────────────────────────────────────────────────────


def config(**fields: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(read_json(path) | fields))

    return change


def write(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


def cut_weights(length: int) -> Change:
    return lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:length])


def remove(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (remove(WEIGHTS), "there are no weights"),
        (remove("config.json"), "there is no config.json"),
        (remove("tokenizer.json"), "the model has no tokenizer"),
        (cut_weights(100), "damaged or cut short"),
        (cut_weights(-1000), "damaged or cut short"),
        (write(WEIGHTS, b""), "damaged or cut short"),
        (write(WEIGHTS, bytes(range(256)) * 20), "damaged or cut short"),
        (write("config.json", b"{"), "config.json: this is not JSON"),
        (write("tokenizer.json", b"{}"), "the tokenizer cannot be loaded"),
        (write("tokenizer.json", b"\xff\xfe"), "the tokenizer cannot be loaded"),
        (write("tokenizer_config.json", b"{"), "tokenizer_config.json: this is not JSON"),
        (write("generation_config.json", b"{"), "generation_config.json: this is not JSON"),
        (
            write("model.safetensors.index.json", b'{"weight_map": {"a": "b.safetensors"}}'),
            "1 of 1 weight files are missing",
        ),
        (config(model_type="gpt_bigcode"), "architecture 'gpt_bigcode' is not described"),
        (config(model_type="nonsense"), "architecture 'nonsense' is not described"),
        (config(model_type=3), "its model_type is 3, no name"),
        (config(intermediate_size=80), "has 64 entries where its config says 80"),
        (config(num_hidden_layers=4), "no tensor 'model.layers.3."),
        (config(num_hidden_layers=2), "beyond its config's layers"),
        (config(num_hidden_layers="x"), "num_hidden_layers"),
        (config(num_key_value_heads=0), "num_key_value_heads"),
        (config(num_key_value_heads=4), "cannot share them evenly"),
        (config(hidden_size=96), "where its config says"),
    ],
)
def test_broken_model_folders(
    unlearn: Unlearn, recipe: Path, model: Path, change: Change, words: str
) -> None:
    folder = recipe.parent / "broken"
    shutil.copytree(model, folder)
    change(folder)
    for verb in ("run", "check"):
        result = unlearn(verb, recipe, "--set", "model.source={path: recipe/broken}")
        assert_refused(result, words)


def test_a_quantised_model_is_refused_before_scoring(
    unlearn: Unlearn, recipe: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    monkeypatch.setattr("pipeline.stages.measure.load_model", pytest.fail)
    folder = recipe.parent / "quantised"
    shutil.copytree(model, folder)
    tensors = load_file(folder / WEIGHTS)
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].to(
        torch.float8_e4m3fn
    )
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    for verb in ("run", "check"):
        result = unlearn(verb, recipe, "--set", "model.source={path: recipe/quantised}")
        assert_refused(result, "up_proj.weight is stored as F8_E4M3", "bfloat16")


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_an_output_that_would_replace_an_input_is_refused(
    unlearn: Unlearn, recipe: Path, model: Path, force: list[str]
) -> None:
    shutil.copytree(model, "out/tiny")
    source = "model.source={path: out/tiny}"
    result = unlearn("run", recipe, "--set", source, *force)
    assert result.code == 2
    if force:
        assert_refused(result, "the output would replace", "which this run reads")
    assert (Path("out/tiny") / WEIGHTS).read_bytes() == (model / WEIGHTS).read_bytes()


def test_weights_that_are_missing_are_not_made_up(
    unlearn: Unlearn, recipe: Path, model: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = recipe.parent / "broken"
    shutil.copytree(model, folder)
    tensors = load_file(folder / WEIGHTS)
    del tensors["model.norm.weight"]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    for verb in ("run", "check"):
        result = unlearn(verb, recipe, "--set", "model.source={path: recipe/broken}")
        assert_refused(result, "lacks weights: model.norm.weight")
    assert_refused(unlearn("inspect", folder), "lacks weights: model.norm.weight")


def test_weights_for_which_the_config_has_no_place(
    unlearn: Unlearn, recipe: Path, tmp_path: Path
) -> None:
    """transformers would compute without them, and everything after it would agree with itself."""
    folder = make_model(tmp_path / "biased", attention_bias=True)
    write_json(
        folder / "config.json", read_json(folder / "config.json") | {"attention_bias": False}
    )
    for verb in ("run", "check"):
        result = unlearn(verb, recipe, "--set", f"model.source={{path: {folder}}}")
        assert_refused(result, "has no place for stored weights", "self_attn.k_proj.bias")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_local_experts": 0}, "num_local_experts of the model's config is 0"),
        ({"num_experts_per_tok": 9}, "take 9 of 4 experts"),
    ],
)
def test_impossible_mixtures(
    unlearn: Unlearn, recipe: Path, tmp_path: Path, fields: dict[str, int], words: str
) -> None:
    folder = make_model(tmp_path / "mixture", "mixtral")
    write_json(folder / "config.json", read_json(folder / "config.json") | fields)
    assert_refused(unlearn("inspect", folder), words)
    assert_refused(unlearn("check", recipe, "--set", f"model.source={{path: {folder}}}"), words)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": ["llama"]}, "its model_type is ['llama'], no name"),
        ({"hidden_act": "nonsense"}, "cannot be loaded"),
        ({"rope_parameters": {"rope_type": "nonsense", "rope_theta": 1e4}}, "cannot be loaded"),
    ],
)
def test_configs_that_no_model_has(
    unlearn: Unlearn, recipe: Path, model: Path, fields: dict[str, Any], words: str
) -> None:
    folder = recipe.parent / "broken"
    shutil.copytree(model, folder)
    config(**fields)(folder)
    assert_refused(unlearn("inspect", folder), words)
    for verb in ("run", "check"):
        result = unlearn(verb, recipe, "--set", "model.source={path: recipe/broken}")
        assert_refused(result, words)


def test_an_embedding_of_another_size(unlearn: Unlearn, recipe: Path, model: Path) -> None:
    folder = recipe.parent / "broken"
    shutil.copytree(model, folder)
    config(vocab_size=4000)(folder)
    for verb in ("run", "check"):
        result = unlearn(verb, recipe, "--set", "model.source={path: recipe/broken}")
        assert_refused(result, "its weights have other shapes than config.json says")


def test_a_tokenizer_of_another_model(unlearn: Unlearn, recipe: Path, tmp_path: Path) -> None:
    make_model(tmp_path / "small", vocab_size=40)
    result = unlearn("run", recipe, "--set", "model.source={path: small}")
    assert_refused(result, "the model knows only 40 tokens")


@pytest.mark.parametrize("section", ["scoring", "evaluate"])
@pytest.mark.parametrize(
    ("template", "words"),
    [(None, "has no chat template"), ("{% for", "template fails"), ("{{ 1 / }}", "template fails")],
)
def test_chat_templates(
    unlearn: Unlearn, recipe: Path, model: Path, section: str, template: str | None, words: str
) -> None:
    folder = recipe.parent / "broken"
    shutil.copytree(model, folder)
    if template is None:
        (folder / "chat_template.jinja").unlink()
    else:
        (folder / "chat_template.jinja").write_text(template)
    for verb in ("run", "check"):
        overrides = ("model.source={path: recipe/broken}", f"{section}.chat_template=true")
        result = unlearn(verb, recipe, "--set", overrides[0], "--set", overrides[1])
        assert_refused(result, words, f"set {section}.chat_template to false")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(range(256)) * 20,
        b"GGUF" + struct.pack("<IQQ", 3, 2**40, 2**40),
        b"GGUF" + struct.pack("<IQQ", 3, 2, 5) + bytes(range(256)),
        b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
    ],
)
def test_corrupt_gguf_files(unlearn: Unlearn, recipe: Path, content: bytes) -> None:
    (recipe.parent / "x.gguf").write_bytes(content)
    for verb in ("run", "check"):
        result = unlearn(verb, recipe, "--set", "model.source={path: recipe/x.gguf}")
        assert_refused(result, "x.gguf: this GGUF file is damaged", "download or install it again")


def test_models_that_are_not_there(unlearn: Unlearn, recipe: Path) -> None:
    for source, words in (
        ("path: gone", "no such model folder or file"),
        ("path: recipe/tiny.yaml", "this is neither"),
        ("package: no-such-package, file: x.gguf", "is not installed"),
        ("hub: a b c", "not a valid name"),
    ):
        assert_refused(unlearn("run", recipe, "--set", f"model.source={{{source}}}"), words)


@pytest.mark.parametrize("key", ["model.source", "forget.code.source"])
def test_no_network(
    unlearn: Unlearn, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    url = "http://127.0.0.1:9"  # nobody listens there
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for verb in ("run", "check"):
        result = unlearn(verb, recipe, "--set", f"{key}={{hub: someone/something}}")
        assert_refused(result, "someone/something: the Hub cannot be reached", "network", code=3)
        assert "local_files_only" not in result.err


# ── places ───────────────────────────────────────────────────────────────────────────────────────


def test_places_that_cannot_hold_an_output_or_a_cache(unlearn: Unlearn, recipe: Path) -> None:
    Path("file").write_text("mine")
    for option, place in (
        ("--out", "file"),
        ("--out", "file/deeper"),
        ("--out", "/proc/nothing"),
        ("--cache-dir", "file"),
        ("--cache-dir", "file/deeper"),
    ):
        result = unlearn("run", recipe, option, place)
        assert_refused(result, place.split("/")[-2 if place.startswith("file/") else -1], option)
    assert Path("file").read_text() == "mine"


def test_places_that_cannot_be_used_are_found_before_anything_is_loaded(
    unlearn: Unlearn, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.run.resolve_model", pytest.fail)
    # Root may write to /proc, and still nothing can be made there.
    assert_refused(unlearn("run", recipe, "--out", "/proc"), "/proc/tiny", "cannot be written to")
    for place in ("o/tiny", "o/tiny/cache"):
        result = unlearn("run", recipe, "--out", "o", "--cache-dir", place)
        assert_refused(result, "o/tiny", "the cache", "replaces as a whole", "--cache-dir")
    assert not Path("o").exists()


def test_two_runs_do_not_make_one_output(unlearn: Unlearn, recipe: Path) -> None:
    with claimed(Path("out/tiny")):
        assert_refused(unlearn("run", recipe), "out/tiny: another run is making this output")
        assert unlearn("run", recipe, "--out", "other").code == 0
    assert not Path("out").exists()
    assert unlearn("run", recipe).code == 0
    assert os.listdir("out") == ["tiny"]


def test_a_manifest_that_is_not_ours_is_a_foreign_folder(unlearn: Unlearn, recipe: Path) -> None:
    Path("out/tiny").mkdir(parents=True)
    for content in ("{", "[]", '{"format": 1, "name": "tiny"}'):
        Path("out/tiny/pruning_manifest.json").write_text(content)
        assert_refused(unlearn("run", recipe), "out/tiny", "not touched", "--force")


def test_a_link_to_an_output_stays_a_link(unlearn: Unlearn, recipe: Path) -> None:
    Path("out").mkdir()
    Path("real").mkdir()
    Path("out/tiny").symlink_to(Path("real").absolute())
    for fraction in (0.25, 0.5):
        assert unlearn("run", recipe, "--set", f"select.ffn.fraction={fraction}").code == 0
        assert Path("out/tiny").is_symlink()
        assert (Path("real") / "config.json").is_file()
    assert os.listdir("out") == ["tiny"]


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("pipeline.stages.texts.write_jsonl", FULL),
        (
            "pipeline.stages.texts.save_file",
            SafetensorError("I/O error: No space left on device (os error 28)"),
        ),
        ("pipeline.stages.measure.write_json", FULL),
        ("pipeline.stages.cut.cut_checkpoint", FULL),
        ("pipeline.stages.cut.copy_companions", shutil.Error([("a", "b", str(FULL))])),
        ("pipeline.evaluation.run.write_result", FULL),
        ("pipeline.evaluation.run.shutil.copyfile", FULL),
        ("pipeline.run.write_manifest", FULL),
    ],
)
def test_a_full_disk_in_every_stage(
    unlearn: Unlearn,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    error: Exception,
) -> None:
    Path("out/tiny").mkdir(parents=True)

    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(place, fail)
        result = unlearn("run", recipe, "--cache-dir", "own-cache")
    assert_refused(result, "no space left on the disk", "nothing was changed", code=3)
    assert os.listdir("out") == ["tiny"] and os.listdir("out/tiny") == []
    assert leftovers(tmp_path / "own-cache") == []


def test_a_disk_that_is_really_full(unlearn: Unlearn, recipe: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(small)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount")
    try:
        for option in ("--out", "--cache-dir"):
            result = unlearn("run", recipe, option, small)
            assert_refused(result, str(small), "no space left on the disk", code=3)
            assert leftovers(small) == []
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        for option in ("--out", "--cache-dir"):
            result = unlearn("run", recipe, option, small, "--set", "seed=1")
            assert_refused(result, str(small), "cannot be written to", option)
    finally:
        subprocess.run(["umount", str(small)], check=True)


# ── signals ──────────────────────────────────────────────────────────────────────────────────────

SLOW = """
import importlib, sys, time
from pipeline import cli
module, name = sys.argv.pop(1).rsplit(".", 1)
module = importlib.import_module(module)
made = getattr(module, name)
def slow(*arguments, **settings):
    result = made(*arguments, **settings)
    print("here", flush=True)
    time.sleep(60)
    return result
setattr(module, name, slow)
cli.main()
"""


ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}


def stopped(recipe: Path, cache: Path, where: str, *signals: signal.Signals) -> tuple[int, str]:
    """Run the command, send signals when it is at `where`; return exit code and stderr."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, where, "run", str(recipe), "--quiet"],
        env=ENVIRONMENT | {"UNLEARN_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's `&` makes its children ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # type: ignore[arg-type]
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    for number in signals:
        process.send_signal(number)
        time.sleep(0.02)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def test_an_interrupted_command_continues(unlearn: Unlearn, recipe: Path, tmp_path: Path) -> None:
    cache = tmp_path / "own-cache"
    # Nobody can clear up after SIGKILL but the next run.
    killed = stopped(recipe, cache, "pipeline.evaluation.run.write_result", signal.SIGKILL)
    assert killed == (-signal.SIGKILL, "")
    assert len(leftovers(cache, tmp_path / "out")) == 3
    twice = (signal.SIGINT, signal.SIGINT)
    code, err = stopped(recipe, cache, "pipeline.evaluation.run.write_result", *twice)
    assert (code, err) == (130, "\nunlearn: interrupted\n  → the same command continues\n")
    assert leftovers(cache, tmp_path / "out") == []
    code, _ = stopped(recipe, cache, "pipeline.run.write_card", signal.SIGTERM, signal.SIGINT)
    assert code == 130
    assert leftovers(cache, tmp_path / "out") == []
    assert unlearn("run", recipe, "--cache-dir", cache).code == 0
    assert os.listdir("out") == ["tiny"]


# ── the command line ─────────────────────────────────────────────────────────────────────────────


def test_errors_as_objects(unlearn: Unlearn, recipe: Path) -> None:
    for arguments, code in (
        (["run", recipe, "--set", "select.ffn.fraction=2", "--json"], 2),
        (["run", recipe, "--json", "--nonsense"], 2),
        (["check", recipe, "--set", "model.source={path: gone}", "--json"], 2),
    ):
        result = unlearn(*arguments)
        assert (result.code, result.out) == (code, "")
        error = json.loads(result.err.splitlines()[-1])
        assert error.keys() == {"event", "what", "where", "remedy", "exit_code"}
        assert (error["event"], error["exit_code"]) == ("error", code)


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    read, write_end = os.pipe()
    os.close(read)
    code = "from pipeline import cli; cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "schema"], stdout=write_end, stderr=subprocess.PIPE, text=True
    )
    os.close(write_end)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
