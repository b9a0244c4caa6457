"""Every command that README and docs show is run, in reading order, or a table says why not.

The commands are the pages' own, and what they name are tiny things of the same names: `no-code` is
a recipe around a random model, `out/no-code` its release, `org/base@0a1b2c3` a folder.
"""

from __future__ import annotations

import io
import itertools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Unlearn
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tiny_recipe import write_recipe
from transformers import AutoModelForCausalLM

from documentation.commands import (
    NOT_RUN,
    OTHER_PROGRAMS,
    PAGES,
    ROOT,
    called,
    parse,
    shown_on,
)
from pipeline import recipe_file
from pipeline.recipe_file import load_recipe
from pipeline.stages.base import Base

WIDTH = {"intermediate_size": 512}  # so that a few per cent of it are a multiple of 32
MIXTURE = "architectures.md"  # whose own recipe is of a mixture of experts
RELEASES = (
    "out/no-code",
    "other/no-code",
    "org/no-code",
    "org/no-code@9f3c2e1",
    "org/model@9f3c2e1",
)
MODELS = ("org/model", "org/base@0a1b2c3", "HuggingFaceTB/SmolLM2-135M")
ELSEWHERE = {"/somewhere": "somewhere"}
# Where something else than 0 is as good: gates of a random model, a machine that lacks something.
ALSO = {("run", "no-poems"): (1, 4), ("doctor",): (2,)}


def pages() -> list[Path]:
    return [page for page in PAGES if shown_on(page)]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_shows_runs(
    page: Path, world: Callable[[str], Unlearn], request: pytest.FixtureRequest
) -> None:
    run = world(page.name)
    for shown in shown_on(page):
        if shown.python:
            exec(shown.python, {"AutoModelForCausalLM": AutoModelForCausalLM})
        elif shown.words[0] not in OTHER_PROGRAMS and shown.text not in NOT_RUN:
            calls = called(shown)
            assert calls, f"nothing runs `{shown.text}`: say in NOT_RUN why"
            for arguments in calls:
                if arguments[0] == "publish":
                    request.getfixturevalue("writable_hub")
                    arguments.append("--yes")  # nobody is there to be asked
                result = run(*(ELSEWHERE.get(word, word) for word in arguments))
                also = [ALSO.get(tuple(arguments[:number]), ()) for number in (1, 2)]
                allowed = {0, *also[0], *also[1]}
                assert result.code in allowed, f"{shown.text}\n{result.out}{result.err}"


@pytest.mark.parametrize("text", NOT_RUN)
def test_what_is_not_run_is_shown_and_parsed(text: str) -> None:
    (shown,) = {shown for page in PAGES for shown in shown_on(page) if shown.text == text}
    for arguments in called(shown):
        parse(arguments)
        if arguments[0] == "run":
            pairs = itertools.pairwise(arguments)
            load_recipe(arguments[1], [value for option, value in pairs if option == "--set"])


@pytest.mark.parametrize("wrong", ["chekc no-code", "check no-code --fast", "curve x --tokens few"])
def test_a_command_that_is_wrong_is_not_parsed(wrong: str) -> None:
    with pytest.raises(Exception, match=r"chekc|No such option|valid integer"):
        parse(wrong.split())


def test_another_program_is_not_one_of_ours_with_a_slip() -> None:
    for page in PAGES:
        for shown in shown_on(page):
            known = shown.python or shown.words[0] in {"unlearn", "make", *OTHER_PROGRAMS}
            assert known, f"{page.name}: {shown.text}"


@pytest.fixture
def world(
    tmp_path: Path,
    tiny_base: Callable[..., Base],
    unlearn: Unlearn,
    template: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], Unlearn]:
    """Make what the commands name, in the working folder, and return the command."""

    def make(page: str) -> Unlearn:
        base = tiny_base("llama", **WIDTH).model.path
        own = tiny_base("mixtral", intermediate_size=128).model.path if page == MIXTURE else base
        for recipe in (ROOT / "recipes").glob("*.yaml"):
            _recipe(tmp_path / "shipped", recipe.stem, base)
        for place, name, model in (
            ("recipes", "my-recipe", own),
            (".", "my-recipe", own),
            ("docs/tutorial", "no-sql", base),
        ):
            _recipe(tmp_path / place, name, model)
        monkeypatch.setattr(recipe_file, "shipped_recipes_folder", lambda: tmp_path / "shipped")
        if not (template / "no-code").exists():
            for recipe in ("no-code", "docs/tutorial/no-sql.yaml"):
                result = unlearn("run", recipe, "--out", template, "--quiet")
                assert result.code == 0, result.out + result.err
        for name in RELEASES:
            shutil.copytree(template / "no-code", tmp_path / name)
        shutil.copytree(template / "no-sql", tmp_path / "out/no-sql")
        for name in MODELS:
            shutil.copytree(base, tmp_path / name)
        for name in ("curve.png", "notes.md"):  # what somebody publishes beside a release
            (tmp_path / name).write_text("my own")
        _texts(tmp_path)
        _key(tmp_path)
        monkeypatch.setattr(sys, "stdin", io.StringIO())  # nobody types
        return unlearn

    return make


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the releases are made once; they are only copied."""
    return tmp_path_factory.mktemp("template")


def _recipe(folder: Path, name: str, model: Path) -> None:
    path = write_recipe(folder, model, name=name, select={"ffn": {"fraction": 0.1}})
    path.rename(folder / f"{name}.yaml")


def _texts(folder: Path) -> None:
    """Poems and prose of somebody's own; `write_recipe` has put `prose.jsonl` here."""
    shutil.copyfile(folder / "code.jsonl", folder / "poems.jsonl")
    (folder / "prose").mkdir()
    for number, line in enumerate((folder / "prose.jsonl").read_text().splitlines()):
        (folder / f"prose/{number}.txt").write_text(json.loads(line)["text"])


def _key(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    (folder / "key.pem").write_bytes(private)
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (folder / "key.pub").write_bytes(public)
