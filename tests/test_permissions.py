"""What another user may not read, enter or write to: said by its name, with exit code 2."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import Result, Unlearn
from tiny_models import make_model
from tiny_recipe import write_recipe

from pipeline.export.maps import NAME as MAPS

NOBODY = 65534
RUN = ("run", "recipe/tiny.yaml", "--quiet")

Prepare = Callable[[], object]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a recipe and room for a cache and outputs; it is only copied."""
    if not hasattr(os, "seteuid") or os.geteuid() != 0:
        pytest.skip("only root can become another user")
    folder = tmp_path_factory.mktemp("made")
    make_model(folder / "model")
    write_recipe(folder / "recipe", Path("../model"))
    (folder / "out").mkdir()
    (folder / "cache").mkdir()
    return folder


@pytest.fixture
def place(made: Path, unlearn: Unlearn, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that everybody may enter: pytest's own are private."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(made, folder, dirs_exist_ok=True)
        open_to_all(Path(folder))
        for name in ("out", "cache"):
            os.chown(Path(folder, name), NOBODY, NOBODY)
        monkeypatch.chdir(folder)
        monkeypatch.setenv("UNLEARN_CACHE", str(Path(folder, "cache")))
        assert unlearn("check", "recipe/tiny.yaml").code == 0  # loads modules while it may
        yield Path(folder)


def open_to_all(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)


@contextmanager
def somebody_else() -> Iterator[None]:
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def refused(unlearn: Unlearn, *arguments: str) -> Result:
    with somebody_else():
        result = unlearn(*arguments)
    assert (result.code, result.out) == (2, ""), result
    assert "Permission denied" in result.err
    for misleading in ("Traceback", "something broke", "damaged", "no such", "did not make"):
        assert misleading not in result.err
    return result


def private(*names: str) -> Prepare:
    """Make files and folders private to root; folders that are not there are made."""

    def prepare() -> None:
        for name in names:
            path = Path(name)
            if not path.exists():
                path.mkdir(parents=True)
            path.chmod(0o700 if path.is_dir() else 0o600)

    return prepare


def moved(file: str, folder: str) -> Prepare:
    """Move a file into a folder that is private to root."""

    def prepare() -> None:
        private(folder)()
        shutil.move(file, folder)

    return prepare


def private_texts(name: str) -> Prepare:
    def prepare() -> None:
        Path("recipe/texts/deep").mkdir(parents=True)
        shutil.copy("recipe/code.jsonl", "recipe/texts/a.jsonl")
        shutil.copy("recipe/prose.jsonl", "recipe/texts/deep/b.jsonl")
        private(name)()

    return prepare


def private_table() -> None:
    pq.write_table(pa.table({"text": ["a b c"]}), "recipe/code.parquet")
    private("recipe/code.parquet")()


MODEL = ("--set", "model.source={path: x.gguf}")
TEXTS = ("--set", "forget.code.source.path=recipe/texts")


@pytest.mark.parametrize(
    ("prepare", "options", "named"),
    [
        (private("out/tiny"), (), "out/tiny"),
        (private("closed"), ("--out", "closed/x"), "closed/x"),
        (private("closed"), ("--cache-dir", "closed/c"), "closed/c"),
        (private("model"), (), "model"),
        (private("model/config.json"), (), "model/config.json"),
        (private("model/model.safetensors"), (), "model/model.safetensors"),
        (lambda: (Path("x.gguf").write_bytes(b"GGUF"), private("x.gguf")()), MODEL, "x.gguf"),
        (private("recipe/code.jsonl"), (), "recipe/code.jsonl"),
        (private_table, ("--set", "forget.code.source.path=recipe/code.parquet"), "code.parquet"),
        (private_texts("recipe/texts"), TEXTS, "recipe/texts"),
        (private_texts("recipe/texts/deep"), TEXTS, "recipe/texts/deep"),
        (
            moved("recipe/code.jsonl", "recipe/texts"),
            ("--set", "forget.code.source.path=recipe/texts/code.jsonl"),
            "recipe/texts/code.jsonl",
        ),
        (private("recipe"), (), "recipe/tiny.yaml"),
    ],
)
def test_a_run_names_what_it_may_not_read_or_write(
    unlearn: Unlearn, place: Path, prepare: Prepare, options: tuple[str, ...], named: str
) -> None:
    prepare()
    result = refused(unlearn, *RUN, *options)
    assert named in result.err.splitlines()[0]
    assert "→ " in result.err
    assert os.listdir(place / "out") in ([], ["tiny"])


def test_published_files_are_readable_and_verify_names_one_that_is_not(
    unlearn: Unlearn, place: Path
) -> None:
    previous = os.umask(0o027)
    try:
        assert unlearn(*RUN, "--set", "gates=[]").code == 0
    finally:
        os.umask(previous)
    release = place / "out/tiny"
    assert (release / MAPS).stat().st_mode & 0o777 == 0o640
    open_to_all(release)
    verify = ("verify", "out/tiny", "--base", "model", "--quiet")
    with somebody_else():
        assert unlearn(*verify).code == 0
    private(f"out/tiny/{MAPS}")()
    assert MAPS in refused(unlearn, *verify).err
