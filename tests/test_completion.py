"""Completion, as a shell asks for it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = str(Path(sys.executable).with_name("unlearn"))
RECIPE = "name: mine\ndescription: Mine.\n"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


def in_bash(script: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        ["bash", "--norc", "-c", f"{script}\nexit $?"],  # bash stays, and is the shell that is seen
        cwd=folder,
        env=os.environ | {"HOME": str(folder)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def completed(folder: Path, line: str, **environment: str) -> set[str]:
    """What bash offers after a line."""
    words = line.split(" ")
    script = f"""
        source <({COMMAND} --show-completion)
        COMP_WORDS=(unlearn {shlex.join(words)}); COMP_CWORD={len(words)}
        _unlearn_completion {COMMAND}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    return set(in_bash(script, folder, **environment).split())


def test_verbs_options_and_recipes_are_completed(tmp_path: Path) -> None:
    assert completed(tmp_path, "ch") == {"chat", "check"}
    assert completed(tmp_path, "d") == {"diff", "doctor"}
    assert completed(tmp_path, "run no-") >= {"no-code", "no-code-heads", "no-french"}
    assert completed(tmp_path, "check no-code-h") == {"no-code-heads"}
    assert completed(tmp_path, "verify out/x --recipe no-code-h") == {"no-code-heads"}
    assert "--max-new-tokens" in completed(tmp_path, "chat --max")


def test_recipes_of_ones_own_are_completed_and_broken_ones_are_no_trouble(tmp_path: Path) -> None:
    for folder, name in (("recipes", "mine"), ("elsewhere", "mine-too")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.yaml").write_text(RECIPE)
    (tmp_path / "recipes/mine-broken.yaml").write_text("a: {")
    own = str(tmp_path / "elsewhere")
    found = completed(tmp_path, "run min", UNLEARN_RECIPES=own)
    assert found == {"mine", "mine-broken", "mine-too"}


def test_where_nothing_fits_the_shell_completes_files(tmp_path: Path) -> None:
    assert completed(tmp_path, "run ./my-re") == set()
    shown = in_bash(f"{COMMAND} --show-completion", tmp_path)
    assert "complete -o default" in shown


def test_completion_is_installed(tmp_path: Path) -> None:
    out = in_bash(f"{COMMAND} --install-completion", tmp_path)
    assert "completion installed" in out
    script = f"source {tmp_path}/.bashrc; complete -p unlearn"
    assert "_unlearn_completion" in in_bash(script, tmp_path)


@pytest.mark.parametrize(("shell", "words"), [("zsh", "#compdef unlearn"), ("fish", "complete ")])
def test_other_shells_are_known(tmp_path: Path, shell: str, words: str) -> None:
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # it is bash that asks here
    assert words in in_bash(f"{COMMAND} --show-completion {shell}", tmp_path, **named)
    asks = f"_UNLEARN_COMPLETE=complete_{shell} _TYPER_COMPLETE_ARGS='unlearn run no-code-' "
    asks += "_TYPER_COMPLETE_FISH_ACTION=get-args "
    found = in_bash(asks + COMMAND, tmp_path)
    assert "no-code-heads" in found and "Programming is removed" in found


def test_nobody_waits_for_torch(tmp_path: Path) -> None:
    loaded = in_bash(
        f"COMP_WORDS='unlearn run no' COMP_CWORD=2 _UNLEARN_COMPLETE=complete_bash "
        f"{sys.executable} -X importtime {COMMAND} 2>&1 | grep -c '| *torch$' || true",
        tmp_path,
    )
    assert loaded.strip() == "0"
