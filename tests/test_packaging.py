import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_wheel_holds_the_recipes_with_their_tasks_and_schema(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    for path in (ROOT / "recipes").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert f"pipeline/{path.relative_to(ROOT).as_posix()}" in packed
    for path in (ROOT / "pipeline").rglob("*.jinja"):
        assert path.relative_to(ROOT).as_posix() in packed
    assert "pipeline/py.typed" in packed
    assert not [name for name in packed if name.endswith(".pyc") or name.startswith("tests/")]


def test_make_takes_paths_with_spaces() -> None:
    def arguments(target: str, *variables: str) -> list[str]:
        command = ["make", "--dry-run", "--no-print-directory", target, *variables]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        return shlex.split(done.stdout.splitlines()[-1])[2:]

    options = ("RECIPE=my recipe.yaml", "OUT=/tmp/a b", "SET=seed=1 select.steps=2")
    expected = ["my recipe.yaml", "--out", "/tmp/a b", "--set", "seed=1", "--set", "select.steps=2"]
    assert arguments("unlearn", *options) == expected
    for target in ("verify", "validate"):
        assert arguments(target, "CHECKPOINT=a b/c", "ARGS=-q") == ["a b/c", "-q"]
        assert arguments(target, "OUT=a b") == ["a b/no-code"]
