from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cache import new_folder
from pipeline.errors import InputError
from pipeline.export.manifest import NAME, write_manifest
from pipeline.stages.output import check_target, claimed, finished


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """An output of the recipe `mine`, made by the run `k`."""
    target = tmp_path / "out"
    with new_folder(target) as folder:
        (folder / "samples").mkdir()
        (folder / "weights").write_bytes(b"weights")
        (folder / "samples" / "a").write_text("sample")
        write_manifest(folder, {"name": "mine", "run_key": "k"})
    return target


def test_a_new_an_empty_and_an_earlier_folder_are_fine(tmp_path: Path, earlier: Path) -> None:
    check_target(tmp_path / "deep" / "new", "mine", force=False)
    (tmp_path / "empty").mkdir()
    check_target(tmp_path / "empty", "mine", force=False)
    check_target(earlier, "mine", force=False)


def file(target: Path) -> None:
    (target / "notes.txt").write_text("mine")


def nested_file(target: Path) -> None:
    (target / "samples" / "notes.txt").write_text("mine")


def nested_manifest(target: Path) -> None:
    (target / "samples" / NAME).write_text("{}")


def link_to_a_folder(target: Path) -> None:
    (target / "link").symlink_to(target.parent, target_is_directory=True)


def dangling_link(target: Path) -> None:
    (target / "link").symlink_to("nowhere")


@pytest.mark.parametrize(
    "add", [file, nested_file, nested_manifest, link_to_a_folder, dangling_link]
)
def test_an_earlier_folder_with_anything_else_in_it_is_refused(
    earlier: Path, add: Callable[[Path], None]
) -> None:
    add(earlier)
    with pytest.raises(InputError, match="not touched") as caught:
        check_target(earlier, "mine", force=False)
    assert "--force" in caught.value.remedy
    check_target(earlier, "mine", force=True)


def test_a_folder_of_something_else_is_refused(tmp_path: Path, earlier: Path) -> None:
    with pytest.raises(InputError, match="recipe 'other' did not make"):
        check_target(earlier, "other", force=False)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("")
    with pytest.raises(InputError, match="not touched"):
        check_target(tmp_path / "photos", "mine", force=False)
    check_target(tmp_path / "photos", "mine", force=True)


def test_places_that_cannot_hold_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a file, not a folder"):
        check_target(tmp_path / "file", "mine", force=True)
    with pytest.raises(InputError, match="this is a file") as caught:
        check_target(tmp_path / "file" / "out", "mine", force=False)
    assert caught.value.where == str(tmp_path / "file")


def test_a_claim_leaves_nothing_but_the_output(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with claimed(target):
        assert len(os.listdir(target.parent)) == 1
    assert os.listdir(tmp_path) == []
    with pytest.raises(KeyboardInterrupt), claimed(target):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []
    with claimed(target), new_folder(target) as folder:
        (folder / "a").write_text("1")
    assert os.listdir(target.parent) == ["out"]


def test_a_place_is_claimed_once_whatever_way_leads_there(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with claimed(tmp_path / "out"), claimed(tmp_path / "other"):
        for way in ("out", "link"):
            with pytest.raises(InputError, match="another run"), claimed(tmp_path / way):
                pass
        with new_folder(tmp_path / "third"):  # it clears away what is abandoned
            pass
        with pytest.raises(InputError, match="another run"), claimed(tmp_path / "out"):
            pass
    with claimed(tmp_path / "out"):
        pass


def test_a_claim_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    with claimed(tmp_path / "out"):
        (name,) = os.listdir(tmp_path)
    (tmp_path / name).mkdir()
    with claimed(tmp_path / "out"):
        assert os.listdir(tmp_path) == [name]
    assert os.listdir(tmp_path) == []


def test_only_the_same_whole_run_is_finished(tmp_path: Path, earlier: Path) -> None:
    manifest = finished(earlier, "k")
    assert manifest is not None
    assert manifest["name"] == "mine"
    assert finished(earlier, "other") is None
    assert finished(tmp_path / "nothing", "k") is None


@pytest.mark.parametrize("content", [b"weightz", b"weight", None])
def test_one_tampered_byte_is_not_finished(earlier: Path, content: bytes | None) -> None:
    if content is None:
        (earlier / "weights").unlink()
    else:
        (earlier / "weights").write_bytes(content)
    assert finished(earlier, "k") is None
