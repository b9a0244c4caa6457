import errno
import fcntl
import json
import math
import os
from pathlib import Path

import pytest

from pipeline import cache
from pipeline.cache import Cache, digest_of, digest_of_file, new_folder
from pipeline.errors import BrokenError, InputError


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def full_disk(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with new_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
        assert folder.parent == target.parent
    assert files(target) == {"a": "1"}
    assert os.listdir(target.parent) == ["out"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_existing_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for name in ("a", "b"):
        with new_folder(target) as folder:
            (folder / name).write_text(name)
    assert files(target) == {"b": "b"}
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_folder_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "out"
    with new_folder(target) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(error), new_folder(target) as folder:
        (folder / "a").write_text("new")
        raise error
    assert files(target) == {"a": "old"}
    assert os.listdir(tmp_path) == ["out"]


def test_a_full_disk_is_explained_and_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    with new_folder(target) as folder:
        (folder / "a").write_text("old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(BrokenError, match="no space left on the disk"), new_folder(target) as new:
        (new / "a").write_text("new")
    assert files(target) == {"a": "old"}
    assert os.listdir(tmp_path) == ["out"]


def test_a_rename_that_fails_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    with new_folder(target) as folder:
        (folder / "a").write_text("old")
    rename = Path.rename
    calls: list[Path] = []

    def failing(path: Path, to: Path) -> Path:
        calls.append(path)
        if len(calls) == 2:  # the old folder is aside, the new one is not yet there
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(InputError, match="cannot be written"), new_folder(target) as new:
        (new / "a").write_text("new")
    assert files(target) == {"a": "old"}
    assert os.listdir(tmp_path) == ["out"]


def test_a_place_that_cannot_be_written_to_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to"), new_folder(tmp_path / "file/out"):
        pass

    def refuse(*_: object, **__: object) -> str:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(cache.tempfile, "mkdtemp", refuse)
    with pytest.raises(InputError) as caught, new_folder(tmp_path / "out"):
        pass
    assert "--out" in caught.value.remedy


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    abandoned = tmp_path / ".out.unlearn-new-x1"
    busy = tmp_path / ".out.unlearn-new-x2"
    mine = tmp_path / ".notes"
    for folder in (abandoned, busy, mine):
        folder.mkdir()
        (folder / "a").write_text("1")
    descriptor = os.open(busy, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # as the process does that is still filling it
    with new_folder(tmp_path / "other") as folder:
        (folder / "a").write_text("2")
    assert sorted(os.listdir(tmp_path)) == [".notes", ".out.unlearn-new-x2", "other"]
    assert files(busy) == {"a": "1"}
    os.close(descriptor)


def test_two_folders_at_once_leave_each_other_alone(tmp_path: Path) -> None:
    with new_folder(tmp_path / "one") as one, new_folder(tmp_path / "two") as two:
        (one / "a").write_text("1")
        (two / "a").write_text("2")
    assert files(tmp_path / "one") == {"a": "1"}
    assert files(tmp_path / "two") == {"a": "2"}
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


@pytest.mark.parametrize("replaced", [False, True])
def test_an_output_that_a_killed_process_had_put_aside_is_put_back(
    tmp_path: Path, replaced: bool
) -> None:
    aside = tmp_path / ".my.out.unlearn-old-123"
    aside.mkdir()
    (aside / "a").write_text("old")
    if replaced:
        (tmp_path / "my.out").mkdir()
        (tmp_path / "my.out" / "a").write_text("new")
    cache.clear_abandoned(tmp_path)
    assert os.listdir(tmp_path) == ["my.out"]
    assert files(tmp_path / "my.out") == {"a": "new" if replaced else "old"}


def test_cache_finds_what_was_made_for_the_same_key(tmp_path: Path) -> None:
    store = Cache(tmp_path)
    key = {"model": "a", "tokens": 3}
    assert store.find("scoring", key) is None

    def fill(folder: Path) -> None:
        (folder / "sums").write_text("x")
        assert store.find("scoring", key) is None

    made = store.get("scoring", key, fill)
    found = store.find("scoring", {"tokens": 3, "model": "a"})
    assert found == made == store.get("scoring", key, lambda _: pytest.fail("it is there"))
    assert (found / "sums").read_text() == "x"
    assert json.loads((found / "key.json").read_text()) == {"stage": "scoring", **key}
    assert store.find("scoring", {**key, "tokens": 4}) is None
    assert store.find("evaluation", key) is None


def test_cache_keeps_nothing_of_an_interrupted_stage(tmp_path: Path) -> None:
    store = Cache(tmp_path)

    def interrupted(_folder: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get("scoring", {}, interrupted)
    assert store.find("scoring", {}) is None
    assert os.listdir(tmp_path / "scoring") == []


def test_of_two_processes_that_make_the_same_output_the_first_wins(tmp_path: Path) -> None:
    store = Cache(tmp_path)

    def slow(folder: Path) -> None:
        (folder / "a").write_text("second")
        store.get("scoring", {}, lambda other: (other / "a").write_text("first") and None)

    assert (store.get("scoring", {}, slow) / "a").read_text() == "first"
    assert len(os.listdir(tmp_path / "scoring")) == 1  # no temporary folder is left


def test_json_has_no_nan(tmp_path: Path) -> None:
    cache.write_json(tmp_path / "a", {"x": [1.5, math.nan, {"y": -math.inf}]})
    text = (tmp_path / "a").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"x": [1.5, None, {"y": None}]}


def test_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "chosen"))
    assert cache.default_root() == tmp_path / "chosen"
    monkeypatch.delenv("UNLEARN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_root() == tmp_path / "unlearn"


def test_digests(tmp_path: Path) -> None:
    assert digest_of({"a": 1, "b": "é"}) == digest_of({"b": "é", "a": 1})
    assert digest_of([1, 2]) != digest_of([2, 1])
    path = tmp_path / "empty"
    path.write_bytes(b"")
    assert digest_of_file(path).startswith("e3b0c44298fc1c14")


def test_a_read_only_output_is_replaced_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "out"
    (target / "samples").mkdir(parents=True)
    (target / "samples" / "old").write_text("")
    (target / "samples").chmod(0o555)
    target.chmod(0o555)
    with new_folder(target) as folder:
        (folder / "new").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in target.iterdir()] == ["new"]
