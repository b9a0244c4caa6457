"""What all tests share: one thread, a cache that is not the user's, and tiny models on disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from command import Result, Unlearn
from hub_address import point_hub_at
from hypothesis import settings
from released import Release
from tiny_models import base_of, load, make_model
from tiny_recipe import CODE, PROSE, write_recipe
from torch import Tensor
from torch.nn import functional
from writable_hub import TOKEN, WritableHub

from pipeline import cli
from pipeline.cache import Cache
from pipeline.progress import Progress
from pipeline.stages.base import Base

TinyBase = Callable[..., Base]

# The same examples every time, however slow the machine: a red test is a reason to look.
settings.register_profile("house", derandomize=True, deadline=None)
settings.load_profile("house")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what `make docs` asks for."""
    parser.addoption("--write-docs", action="store_true", help="write the generated docs anew")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("UNLEARN_CACHE", str(tmp_path_factory.mktemp("default-cache")))
    for name in ("MAKEFLAGS", "MAKEOVERRIDES", "ARGS"):  # of the `make test` that runs this
        patch.delenv(name, raising=False)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> TinyBase:
    """Return the tiny model of a family and of config fields; each is made once and only read."""
    made: dict[str, Base] = {}

    def make(family: str = "llama", **settings: object) -> Base:
        name = f"{family}-{sorted(settings.items())}"
        if name not in made:
            folder: Path = tmp_path_factory.mktemp(family)
            made[name] = base_of(make_model(folder, family, **settings))
        return made[name]

    return make


@pytest.fixture
def finite_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a row of nothing but padding attend to all alike, in float64 too, as it does in float32.

    Some families mask with the least float64 and take the softmax in float32, where that is −∞.
    """
    softmax = functional.softmax

    def finite(scores: Tensor, *arguments: Any, dtype: Any = None, **keywords: Any) -> Tensor:
        scores = scores.to(dtype or scores.dtype)
        return softmax(scores.clamp(min=torch.finfo(scores.dtype).min), *arguments, **keywords)

    monkeypatch.setattr(functional, "softmax", finite)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def quiet() -> Progress:
    return Progress("quiet")


@pytest.fixture(scope="module")
def warm_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def unlearn(
    tmp_path: Path,
    warm_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Iterator[Unlearn]:
    """Run the command in this process, in the test's folder; a module's runs share a cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNLEARN_CACHE", str(warm_cache))
    handlers = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }

    def call(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["unlearn", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capfd.readouterr()
        return Result(int(caught.value.code or 0), captured.out, captured.err)

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def made() -> dict[str, tuple[Path, Path]]:
    """Recipes and outputs of `release`, by family and overrides; they are only copied."""
    return {}


@pytest.fixture
def release(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_base: TinyBase,
    made: dict[str, tuple[Path, Path]],
    unlearn: Unlearn,
) -> Callable[..., Release]:
    """Make the release of a tiny model with `unlearn run`, and copy it."""

    def make(
        family: str = "llama", *overrides: str, base: dict[str, Any] | None = None, **fields: Any
    ) -> Release:
        model = tiny_base(family, dtype=torch.bfloat16, **(base or {})).model.path
        key = f"{family} {overrides} {base} {fields}"
        if key not in made:
            place = tmp_path_factory.mktemp("released")
            recipe = write_recipe(place / "recipe", model, **({"gates": []} | fields))
            options = [part for one in overrides for part in ("--set", one)]
            assert unlearn("run", recipe, "--out", place, "--quiet", *options).code in (0, 1)
            made[key] = recipe, place / "tiny"
        recipe, output = made[key]
        folder = tmp_path / "release"
        shutil.copytree(output, folder)
        return Release(folder, model, recipe, unlearn)

    return make


@pytest.fixture(scope="session")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that is better than chance on both texts."""
    folder = make_model(tmp_path_factory.mktemp("learned"))
    model, tokenizer = load(folder, torch.float32), base_of(folder).tokenizer
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    torch.manual_seed(0)
    lines = [_cycle(words, start, 30) for words in (CODE, PROSE) for start in range(8)]
    rows = [tokenizer(line)["input_ids"][:40] for line in lines]
    ids = torch.tensor([row[: min(map(len, rows))] for row in rows])
    for _ in range(60):
        loss = model(input_ids=ids, labels=ids).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def writable_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    """A Hub on this machine on which a token may write to some organisations."""
    server = WritableHub()
    server.tokens[TOKEN] = {"name": "me", "orgs": ["org", "elsewhere"], "role": "write"}
    server.organisations = {"org", "elsewhere", "theirs"}
    point_hub_at(server.url, monkeypatch, tmp_path / "hub-cache")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _seconds: None)
    yield server
    server.stop()


@pytest.fixture
def learned_recipe(tmp_path: Path, learned: Path) -> Path:
    """A recipe whose texts are the cycles that the model has learned."""
    path = write_recipe(tmp_path / "recipe", learned, gates=[])
    for name, words in (("code", CODE), ("prose", PROSE)):
        texts = [_cycle(words, start, 20 + start % 7) for start in range(120)]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in dict.fromkeys(texts))
        (path.parent / f"{name}.jsonl").write_text(lines)
    return path


def _cycle(words: list[str], start: int, length: int) -> str:
    """The words in their order, again and again."""
    return " ".join(words[i % len(words)] for i in range(start, start + length))
