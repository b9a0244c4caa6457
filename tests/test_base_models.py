"""Bases that are stored in other ways than plain safetensors: from the recipe to the release."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Result, Unlearn
from safetensors.torch import load_file
from sources.test_quantised_models import make_fp8, pack_experts
from tiny_models import make_model
from tiny_recipe import write_recipe

from pipeline.cache import read_json
from pipeline.export.manifest import NAME as MANIFEST

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("plain"), dtype=torch.bfloat16)


@pytest.fixture
def recipe(tmp_path: Path, plain: Path) -> Path:
    """A recipe of a copy of the plain model, without gates."""
    shutil.copytree(plain, tmp_path / "recipe" / "base")
    return write_recipe(tmp_path / "recipe", Path("base"), gates=[])


@pytest.fixture
def base(recipe: Path) -> Path:
    return recipe.parent / "base"


def said(result: Result) -> dict[str, Any]:
    """The result that a command printed as JSON."""
    assert result.out, result.err
    found: dict[str, Any] = json.loads(result.out.splitlines()[-1])
    return found


def assert_refused(result: Result, *words: str) -> None:
    assert (result.code, result.out) == (2, "")
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err


# ── pickled ──────────────────────────────────────────────────────────────────────────────────────

PICKLE = ("--set", "model.allow_pickle=true")


@pytest.fixture
def pickled(base: Path) -> Path:
    torch.save(load_file(base / WEIGHTS), base / "pytorch_model.bin")
    (base / WEIGHTS).unlink()
    return base


def test_a_pickled_base_is_cut_and_verified(
    unlearn: Unlearn, recipe: Path, pickled: Path, plain: Path
) -> None:
    for verb in ("run", "check"):
        assert_refused(unlearn(verb, recipe), "its weights are pickled", "model.allow_pickle")
    assert unlearn("check", recipe, *PICKLE).code == 0
    assert unlearn("run", recipe, *PICKLE, "--quiet").code == 0
    manifest = read_json(Path("out/tiny") / MANIFEST)
    assert "sha256 of pytorch_model.bin" in manifest["base"]["origin"]
    # The same cut as of the same tensors in safetensors.
    source = f"model.source={{path: {plain}}}"
    assert unlearn("run", recipe, "--set", source, "--out", "other", "--quiet").code == 0
    one, other = (load_file(Path(folder) / "tiny" / WEIGHTS) for folder in ("out", "other"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    for extra in ((), ("--base", pickled)):
        found = unlearn("verify", "out/tiny", "--recipe", recipe, *PICKLE, *extra, "--json")
        assert (found.code, said(found)["verdict"]) == (0, "VERIFIED")
    # What may be read is for the reader to say: the release's own recipe does not count.
    refused = unlearn("verify", "out/tiny", "--base", pickled, "--quiet")
    assert_refused(refused, "its weights are pickled", "model.allow_pickle")


def test_a_pickled_model_is_inspected_without_being_read(unlearn: Unlearn, pickled: Path) -> None:
    (pickled / "pytorch_model.bin").write_bytes(b"never read")
    found = said(unlearn("inspect", pickled, "--json"))
    assert (found["kind"], found["architecture"], found["layers"]) == ("pickled", "llama", 3)


# ── code that comes with the model ───────────────────────────────────────────────────────────────

TRUST = ("--set", "model.trust_remote_code=true")
LEAVE_A_MARK = """
import pathlib
(pathlib.Path({folder!r}) / pathlib.Path(__file__).name).write_text(__file__)
"""
# Not what the stock class computes: its logits are three times as large.
MODELING = """
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
    def forward(self, *arguments, **settings):
        output = super().forward(*arguments, **settings)
        output.logits = output.logits * 3
        return output
"""
CONFIGURATION = """
from transformers import LlamaConfig
class OwnConfig(LlamaConfig):
    pass
"""
TOKENIZATION = """
from transformers import PreTrainedTokenizerFast
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
CODE = {
    "configuration_own.py": CONFIGURATION,
    "modeling_own.py": MODELING,
    "tokenization_own.py": TOKENIZATION,
}


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(read_json(path) | fields))


@pytest.fixture
def marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which each file of code that is run leaves a file of its name."""
    forget_modules()
    folder = tmp_path / "marks"
    folder.mkdir()
    modules = str(tmp_path / "modules")
    monkeypatch.syspath_prepend(modules)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
    return folder


@pytest.fixture
def coded(base: Path, marks: Path) -> Path:
    """The base with code of its own, in all places that name code."""
    for name, text in CODE.items():
        (base / name).write_text(LEAVE_A_MARK.format(folder=str(marks)) + text)
    edit(
        base / "config.json",
        auto_map={
            "AutoConfig": "configuration_own.OwnConfig",
            "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        },
    )
    edit(
        base / "tokenizer_config.json",
        auto_map={"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]},
    )
    return base


def forget_modules() -> None:
    """Python runs a module once; let it do so again."""
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


def run_marks(marks: Path) -> set[str]:
    return {path.name for path in marks.iterdir()}


def test_code_of_a_described_family_is_not_run(
    unlearn: Unlearn, recipe: Path, coded: Path, marks: Path
) -> None:
    assert unlearn("inspect", coded).code == 0
    assert unlearn("check", recipe).code == 0
    assert unlearn("run", recipe, "--quiet").code == 0
    for verb in ("verify", "validate"):
        found = unlearn(verb, "out/tiny", "--recipe", recipe, "--quiet")
        assert found.code == 0, found
    assert unlearn("verify", "out/tiny", "--base", coded, "--quiet").code == 0
    exported = unlearn("export", "out/tiny", "--type", "F32", "--quiet")
    assert "Traceback" not in exported.err
    assert run_marks(marks) == set()
    # The release is of the stock class, and names no code that it does not have.
    assert "auto_map" not in read_json(Path("out/tiny/config.json"))
    assert not list(Path("out/tiny").rglob("*.py"))
    assert "no remote code is needed" in Path("out/tiny/README.md").read_text()


def test_a_family_that_needs_its_code_is_refused_by_name(
    unlearn: Unlearn, recipe: Path, coded: Path, marks: Path
) -> None:
    edit(coded / "config.json", model_type="own")
    words = "transformers has no 'own': the model needs code that comes with it"
    for verb in ("run", "check"):
        assert_refused(unlearn(verb, recipe), words, "model.trust_remote_code")
    assert_refused(unlearn("inspect", coded), words)
    assert run_marks(marks) == set()
    for verb in ("run", "check"):  # allowed, it still has to be described
        assert_refused(unlearn(verb, recipe, *TRUST), "architecture 'own' is not described")


def test_code_that_may_be_run_goes_with_the_release(
    unlearn: Unlearn, recipe: Path, coded: Path, marks: Path
) -> None:
    assert unlearn("check", recipe, *TRUST).code == 0
    assert unlearn("run", recipe, *TRUST, "--quiet").code == 0
    assert run_marks(marks) == set(CODE)
    release = Path("out/tiny")
    for name in CODE:
        assert (release / name).read_bytes() == (coded / name).read_bytes()
    manifest = read_json(release / MANIFEST)
    assert manifest["recipe"]["model"]["trust_remote_code"] is True
    assert manifest["base"]["origin"]["remote_code"] == ", ".join(sorted(CODE))
    assert set(CODE) <= manifest["base"]["files"].keys()
    card = (release / "README.md").read_text()
    assert "is computed by code that comes with its base" in card
    assert card.count("trust_remote_code=True") == 2
    assert_refused(unlearn("export", release, "--quiet"), "llama.cpp does not have")
    # It is the base's code that computes both: evaluated with the stock class, losses differ.
    stock = unlearn("run", recipe, "--out", "stock", "--quiet", "--json")
    losses = [
        read_json(Path(out) / "tiny/evaluation.json")["pruned"]["tasks"]["next_token_prose"][
            "metrics"
        ]["loss"]
        for out in ("out", "stock")
    ]
    assert stock.code == 0 and abs(losses[0] - losses[1]) > 0.1


def test_code_of_a_release_is_never_run(
    unlearn: Unlearn, recipe: Path, coded: Path, marks: Path
) -> None:
    assert unlearn("run", recipe, *TRUST, "--quiet").code == 0
    release = Path("out/tiny").absolute()
    for path in marks.iterdir():
        path.unlink()
    forget_modules()
    # Without leave nothing is run, and the copies are compared all the same.
    found = unlearn("verify", release, "--base", coded, "--json")
    assert found.code == 0
    assert any("needs trust_remote_code" in note for note in said(found)["notes"])
    assert run_marks(marks) == set()
    # Who wants figures must allow the base's code.
    for arguments in (("validate",), ("verify", "--recompute")):
        refused = unlearn(*arguments, release, "--recipe", recipe, "--quiet")
        assert_refused(refused, "code of its base, which your recipe does not allow")
    assert run_marks(marks) == set()
    anew = ("--cache-dir", "own-cache", "--quiet")
    assert unlearn("validate", release, "--recipe", recipe, *TRUST, *anew).code == 0
    assert run_marks(marks) == set(CODE)
    assert all("modules/base/" in path.read_text() for path in marks.iterdir())
    forget_modules()
    # A release whose copy was changed is different, and not even then is it run.
    changed = 'raise SystemExit("the code of a release was run")\n'
    for name in CODE:
        (release / name).write_text(changed)
    for verb in ("verify", "validate"):
        found = unlearn(verb, release, "--recipe", recipe, *TRUST, "--json")
        assert found.code == 1
        told = said(found)
        findings = told.get("verification", told)["findings"]
        assert {f["where"] for f in findings} >= set(CODE)


def test_a_chat_runs_the_code_of_the_base_alone_and_only_if_it_may(
    unlearn: Unlearn, recipe: Path, coded: Path, marks: Path
) -> None:
    assert unlearn("run", recipe, *TRUST, "--quiet").code == 0
    release = Path("out/tiny").absolute()
    for path in marks.iterdir():
        path.unlink()
    forget_modules()
    ask = ("--prompt", "the cat", "--max-new-tokens", "2", "--json")
    for arguments in ((coded, release), (release, "--recipe", recipe)):
        refused = unlearn("chat", *arguments, *ask, "--quiet")
        assert_refused(refused, "code of its base, which nothing here allows")
    assert run_marks(marks) == set()
    for name in CODE:
        (release / name).write_text('raise SystemExit("the code of a release was run")\n')
    assert unlearn("chat", release, "--recipe", recipe, *TRUST, *ask).code == 0
    assert run_marks(marks) == set(CODE)


def test_a_release_that_says_it_needs_no_code_is_different(
    unlearn: Unlearn, recipe: Path, coded: Path
) -> None:
    assert unlearn("run", recipe, *TRUST, "--quiet").code == 0
    manifest = read_json(Path("out/tiny") / MANIFEST)
    manifest["recipe"]["model"]["trust_remote_code"] = False
    (Path("out/tiny") / MANIFEST).write_text(json.dumps(manifest))
    found = unlearn("verify", "out/tiny", "--base", coded, "--json")
    assert found.code == 1
    assert {f["where"] for f in said(found)["findings"]} >= {"config.json", *CODE}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"AutoConfig": "gone.OwnConfig"}, "names gone.OwnConfig, and there is no such file"),
        ({"AutoConfig": "org/repo--modeling_own.OwnConfig"}, "its code is in another repository"),
        ({"AutoConfig": [3]}, "which is no class"),
        ({"AutoConfig": "configuration_own.Other"}, "the config cannot be loaded"),
    ],
)
def test_code_that_cannot_be_used(
    unlearn: Unlearn, recipe: Path, coded: Path, change: dict[str, Any], words: str
) -> None:
    edit(coded / "config.json", auto_map=change)
    for verb in ("run", "check"):
        assert_refused(unlearn(verb, recipe, *TRUST), words)


def test_a_tokenizer_that_needs_code(
    unlearn: Unlearn, recipe: Path, coded: Path, marks: Path
) -> None:
    edit(coded / "tokenizer_config.json", tokenizer_class="OwnTokenizer")
    for verb in ("run", "check"):
        result = unlearn(verb, recipe, *(["--quiet"] if verb == "run" else []))
        assert_refused(result, "the tokenizer needs code that comes with the model")
    assert run_marks(marks) == set()
    assert unlearn("check", recipe, *TRUST).code == 0


def test_ragged_and_own_code_exclude_each_other(
    unlearn: Unlearn, recipe: Path, coded: Path
) -> None:
    refused = unlearn("run", recipe, *TRUST, "--set", "select.policy=ragged")
    assert_refused(refused, "select.policy", "its own")


# ── quantised ────────────────────────────────────────────────────────────────────────────────────


def test_an_fp8_base_is_dequantised_cut_and_verified(
    unlearn: Unlearn, recipe: Path, base: Path
) -> None:
    make_fp8(base, (16, 16))
    fields = ("--set", "model.dequantise=true", "--set", "model.dtype=bfloat16")
    for verb in ("run", "check"):
        assert_refused(unlearn(verb, recipe), "the model is quantised (fp8)", "model.dequantise")
    checked = said(unlearn("check", recipe, *fields, "--json"))
    assert checked["model"]["kind"] == "fp8"
    # Two bytes a parameter, and not the one that is stored now.
    assert checked["output_bytes"] > 1.5 * checked["model"]["parameters"]
    assert said(unlearn("inspect", base, "--json"))["kind"] == "fp8"
    assert unlearn("run", recipe, *fields, "--quiet").code == 0
    release = Path("out/tiny")
    assert "quantization_config" not in read_json(release / "config.json")
    assert {tensor.dtype for tensor in load_file(release / WEIGHTS).values()} == {torch.bfloat16}
    assert read_json(release / MANIFEST)["base"]["origin"]["dequantised"] == "fp8 to bfloat16"
    for extra in (("--base", base), ("--recipe", recipe, *fields)):
        found = unlearn("verify", release, *extra, "--json")
        assert (found.code, said(found)["verdict"]) == (0, "VERIFIED")
    assert unlearn("validate", release, "--recipe", recipe, *fields, "--quiet").code == 0


def test_an_mxfp4_mixture_is_dequantised_cut_and_verified(unlearn: Unlearn, tmp_path: Path) -> None:
    """As gpt-oss is published: experts in blocks of 32 four-bit numbers."""
    base = make_model(tmp_path / "oss", "gpt_oss", dtype=torch.bfloat16, hidden_size=64)
    pack_experts(base)
    recipe = write_recipe(tmp_path / "recipe", base, gates=[])
    fields = ("--set", "model.dequantise=true", "--set", "select.experts.fraction=0.25")
    assert_refused(unlearn("run", recipe), "the model is quantised (mxfp4)", "model.dequantise")
    assert unlearn("run", recipe, *fields, "--set", "model.dtype=bfloat16", "--quiet").code == 0
    release = Path("out/tiny")
    assert read_json(release / "config.json")["num_local_experts"] == 3
    assert not [name for name in load_file(release / WEIGHTS) if name.endswith("_scales")]
    found = unlearn("verify", release, "--base", base, "--json")
    assert (found.code, said(found)["verdict"]) == (0, "VERIFIED")
