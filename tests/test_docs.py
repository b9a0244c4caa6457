"""What README and docs show: the recipe runs, and every command that they name exists."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import typer
from command import Unlearn
from tiny_recipe import write_recipe

from pipeline.cache import read_json
from pipeline.cli import app
from pipeline.stages.base import Base

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SETTINGS = [
    "scoring={forget_tokens: 600, retain_tokens: 900, sequence_length: 32}",
    "select.ffn.multiple_of=8",
    "statistics.min_documents=2",
]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def commands() -> list[tuple[str, list[str]]]:
    """Every command line of `unlearn` in a shell block, with the name of its page."""
    found = []
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0].rpartition("/")[2] == "unlearn":
                    found.append((page.name, words[1:]))
    return found


@pytest.mark.parametrize(("page", "words"), commands(), ids=lambda value: str(value)[:60])
def test_every_command_that_is_shown_exists(page: str, words: list[str]) -> None:
    verbs = typer.main.get_command(app)
    assert isinstance(verbs, click.Group) or hasattr(verbs, "commands")
    command = verbs.commands[words[0]]
    options = {name for parameter in command.params for name in parameter.opts}
    for word in words[1:]:
        if word.startswith("-"):
            assert word in options, f"{page}: {' '.join(words)}"


def test_the_recipe_of_the_readme_runs(
    unlearn: Unlearn, tiny_base: Callable[..., Base], tmp_path: Path
) -> None:
    (recipe,) = [text for text in blocks(ROOT / "README.md", "yaml") if "name: no-poems" in text]
    write_recipe(tmp_path / "texts", tiny_base("llama").model.path)
    (tmp_path / "texts/code.jsonl").rename(tmp_path / "poems.jsonl")
    (tmp_path / "prose").mkdir()
    lines = (tmp_path / "texts/prose.jsonl").read_text().splitlines()
    for number, line in enumerate(lines):
        (tmp_path / f"prose/{number}.txt").write_text(json.loads(line)["text"])
    path = tmp_path / "no-poems.yaml"
    path.write_text(recipe)
    model = f"model={{source: {{path: {tiny_base('llama').model.path}}}, dtype: float32}}"
    options = [part for one in [model, *SETTINGS] for part in ("--set", one)]
    code, _, err = unlearn("run", path, "--quiet", *options)
    assert code in (0, 1, 4), err
    manifest = read_json(Path("out/no-poems/pruning_manifest.json"))
    assert [gate["task"] for gate in manifest["evaluation"]["gates"]] == [
        "next_token_poems",
        "next_token_prose",
    ]


def test_every_page_that_is_linked_exists() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
