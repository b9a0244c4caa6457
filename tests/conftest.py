"""What all tests share: one thread, a cache that is not the user's, and tiny models on disk."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from command import Result, Unlearn
from hypothesis import settings
from tiny_models import base_of, make_model

from pipeline import cli
from pipeline.cache import Cache
from pipeline.progress import Progress
from pipeline.stages.base import Base

TinyBase = Callable[..., Base]

# The same examples every time, however slow the machine: a red test is a reason to look.
settings.register_profile("house", derandomize=True, deadline=None)
settings.load_profile("house")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("UNLEARN_CACHE", str(tmp_path_factory.mktemp("default-cache")))
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
