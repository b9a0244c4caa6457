"""The command that writes a report outside of a release."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command import Unlearn
from released import edit, untell

from pipeline.cache import write_json
from pipeline.export.manifest import NAME as MANIFEST

EARLIER = Path(__file__).parent / "export" / "manifests"
PNG = b"\x89PNG\r\n\x1a\n"


def test_the_report_of_a_release_is_the_one_in_it(release: Any, unlearn: Unlearn) -> None:
    made = release()
    result = unlearn("report", made.folder, "--quiet", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out.splitlines()[-1])
    folder = made.folder.with_name(f"{made.folder.name}-report")
    assert found["folder"] == str(folder) and "figures/scores-ffn.svg" in found["files"]
    for name in found["files"]:
        assert (folder / name).read_bytes() == (made.folder / name).read_bytes()
    assert made.verify()[0] == 0  # nothing was written into the release


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_release_of_an_earlier_format_has_one_too(
    tmp_path: Path, unlearn: Unlearn, number: int
) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    shutil.copy(EARLIER / f"manifest-{number}.json", folder / MANIFEST)
    result = unlearn("report", folder, "--out", tmp_path / "a/b", "--quiet")
    assert result.code == 0, result.err
    assert "It worked" in (tmp_path / "a/b/report.html").read_text()
    assert {path.name for path in (tmp_path / "a/b/figures").iterdir()} == {
        "gates.svg",
        "layers.svg",
        "results.svg",
    }


def test_figures_as_png(release: Any, unlearn: Unlearn, tmp_path: Path) -> None:
    result = unlearn("report", release().folder, "--out", tmp_path / "r", "--png")
    assert result.code == 0, result.err
    figures = sorted((tmp_path / "r/figures").glob("*.svg"))
    assert figures
    for figure in figures:
        content = figure.with_suffix(".png").read_bytes()
        assert content.startswith(PNG)
        assert int.from_bytes(content[16:20], "big") == 1440
        assert str(figure.with_suffix(".png")) in result.out


def test_bad_input(
    release: Any, unlearn: Unlearn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = release()
    (tmp_path / "file").touch()
    for arguments, message in (
        (("nowhere",), "no such"),
        ((made.base,), f"no {MANIFEST}"),
        ((made.folder, "--out", made.folder / "extra"), "nothing is written into a release"),
        ((made.folder, "--out", tmp_path / "file"), "no place for a folder"),
        ((made.folder, "--out", tmp_path / "file/below"), "no place for a folder"),
    ):
        result = unlearn("report", *arguments, "--quiet")
        assert result.code == 2 and message in result.err, result.err
        assert "Traceback" not in result.err
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.release.report.png.PACKAGE", "no_such_package")
        result = unlearn("report", made.folder, "--png", "--quiet")
        assert result.code == 2 and "unlearn-pipeline[figures]" in result.err
    untell(made.folder)
    manifest = json.loads((made.folder / MANIFEST).read_text())
    manifest["scores"]["ffn"]["histogram"]["kept"] = [[1, 2]]
    write_json(made.folder / MANIFEST, manifest)
    result = unlearn("report", made.folder, "--quiet")
    assert result.code == 2 and "no report can be made of this manifest" in result.err
    edit(MANIFEST, lambda m: m.update(seed="x"))(made.folder)
    result = unlearn("report", made.folder, "--quiet")
    assert result.code == 2 and "manifest: seed" in result.err
