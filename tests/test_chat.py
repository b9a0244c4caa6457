"""`unlearn chat`: base and pruned model side by side."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command import Result, Unlearn
from released import Release, edit
from rich.console import Console

import pipeline.chat
from pipeline.chat import Conversation
from pipeline.evaluation.completions import generate
from pipeline.evaluation.streaming import Manner, Speaker
from pipeline.export.manifest import NAME as MANIFEST
from pipeline.release.show_answers import show_answers

Make = Callable[..., Release]
PROMPT = "the cat sat"
TEMPLATE = "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}the"
LENGTH = ("--max-new-tokens", "12")


@pytest.fixture
def cut(release: Make) -> Release:
    return release("llama")


@pytest.fixture
def base(cut: Release, tmp_path: Path) -> Path:
    """The base of the release, with a chat template; the release has the same one."""
    folder = tmp_path / "base"
    shutil.copytree(cut.base, folder)
    for place in (folder, cut.folder):
        (place / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def asked(unlearn: Unlearn, *arguments: str | Path, prompt: str = PROMPT) -> dict[str, Any]:
    options = ["--prompt", prompt, "--json", "--quiet", *LENGTH]
    code, out, err = unlearn("chat", *arguments, *options)
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def typed(
    unlearn: Unlearn, monkeypatch: pytest.MonkeyPatch, lines: str, *arguments: str | Path
) -> Result:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    return unlearn("chat", *arguments, *LENGTH)


@pytest.mark.parametrize("policy", ["uniform", "ragged"])
def test_both_answer_as_they_would_alone(unlearn: Unlearn, release: Make, policy: str) -> None:
    cut = release("llama", f"select.policy={policy}")
    found = asked(unlearn, cut.base, cut.folder, "--no-chat-template")
    for side, folder in (("base", cut.base), ("pruned", cut.folder)):
        (expected,) = generate(folder, [PROMPT], "bfloat16", max_new_tokens=12)
        assert found[side]["answer"] == expected
    assert found["base"]["answer"] != found["pruned"]["answer"]


def test_several_prompts_are_answered_each_alone(unlearn: Unlearn, cut: Release) -> None:
    prompts = [PROMPT, "seven dogs", PROMPT]
    options = [part for prompt in prompts for part in ("--prompt", prompt)]
    code, out, _ = unlearn("chat", cut.base, cut.folder, *options, "--json", "--quiet", *LENGTH)
    assert code == 0
    found = [json.loads(line) for line in out.splitlines()]
    assert [each["prompt"] for each in found] == prompts
    assert found[0] == found[2] != found[1]


def test_no_code_of_a_release_is_run(unlearn: Unlearn, release: Make, tmp_path: Path) -> None:
    cut = release("llama", "select.policy=ragged")
    trap = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    for place in (cut.folder, tmp_path):
        (place / "modeling_unlearn.py").write_text(trap)
    asked(unlearn, cut.base, cut.folder)
    assert not (tmp_path / "ran").exists()


def test_answers_are_printed_below_each_other_where_there_is_no_terminal(
    unlearn: Unlearn, cut: Release
) -> None:
    found = asked(unlearn, cut.base, cut.folder)
    code, out, err = unlearn("chat", cut.base, cut.folder, "--prompt", PROMPT, *LENGTH)
    assert code == 0
    assert out.index("base: ") < out.index("pruned: ") and "\x1b" not in out
    for side in ("base", "pruned"):
        word = max(re.findall(r"\w+", found[side]["answer"]), key=len)
        assert word in out
    assert "> Base model" in err and "> Pruned model" in err


# ── the base ─────────────────────────────────────────────────────────────────────────────────────


def test_the_release_alone_takes_its_base_from_where_verify_does(
    unlearn: Unlearn, cut: Release, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = asked(unlearn, cut.base, cut.folder)
    for options in (("--base", cut.base), ("--recipe", cut.recipe), ()):
        found = asked(unlearn, cut.folder, *options)
        assert found["base"]["answer"] == expected["base"]["answer"], options
    (tmp_path / "recipes").mkdir()  # as verify does, it looks for no recipe here
    (tmp_path / "recipes/tiny.yaml").write_text("broken: {")
    monkeypatch.setenv("UNLEARN_RECIPES", str(tmp_path / "recipes"))
    assert asked(unlearn, cut.folder) == found
    monkeypatch.setattr(pipeline.chat, "shipped_recipe", lambda name: cut.recipe)
    edit(MANIFEST, lambda m: m["recipe"]["model"].update(source={"hub": "evil/base"}))(cut.folder)
    assert asked(unlearn, cut.folder) == found


def test_a_base_that_the_release_names_is_given_no_rights(
    unlearn: Unlearn, cut: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    rights = {"allow_pickle": True, "dequantise": True}
    edit(MANIFEST, lambda m: m["recipe"]["model"].update(rights))(cut.folder)
    models = []
    resolve = pipeline.chat.resolve_model
    monkeypatch.setattr(
        pipeline.chat, "resolve_model", lambda model, *a: models.append(model) or resolve(model, *a)
    )
    asked(unlearn, cut.folder)
    (model,) = models
    assert (model.trust_remote_code, model.allow_pickle, model.dequantise) == (False, False, True)


@pytest.mark.parametrize("source", [{"path": "../base"}, {"hub": 5}, 7, {}])
def test_a_base_that_is_not_known_here_has_to_be_named(
    unlearn: Unlearn, cut: Release, source: Any
) -> None:
    edit(MANIFEST, lambda m: m["recipe"]["model"].update(source=source))(cut.folder)
    code, _, err = unlearn("chat", cut.folder, "--prompt", PROMPT)
    assert code == 2 and "unlearn chat BASE PRUNED" in err


def test_what_is_no_model_is_refused(unlearn: Unlearn, cut: Release, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments in (["gone"], ["empty"], [cut.base, "gone"], [cut.base, "empty"]):
        code, _, err = unlearn("chat", *arguments, "--prompt", PROMPT)
        assert code == 2 and "Traceback" not in err, arguments
    code, _, err = unlearn("chat", cut.base, cut.folder, "--base", cut.base)
    assert code == 2 and "the base is given twice" in err
    assert unlearn("chat", cut.base, cut.folder, "--temperature", "-1").code == 2


# ── conversations ────────────────────────────────────────────────────────────────────────────────


def test_prompts_are_read_until_they_end(
    unlearn: Unlearn, cut: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (cut.base, cut.folder, "--no-chat-template")
    lines = f"{PROMPT}\n\n   \n/help\n/reset\n{PROMPT}\n/quit\n{PROMPT}\n"
    code, out, err = typed(unlearn, monkeypatch, lines, *arguments)
    assert code == 0
    assert out.count("pruned: ") == 2
    assert "/quit or Ctrl-D ends" in err and "What was said is forgotten" in err
    assert "nothing is remembered" in err
    code, out, _ = typed(unlearn, monkeypatch, f"{PROMPT}\n", *arguments)
    assert code == 0 and out.count("pruned: ") == 1


def test_what_is_too_long_does_not_end_the_conversation(
    unlearn: Unlearn, cut: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = f"{'seven dogs ' * 400}\n{PROMPT}\n"
    code, out, err = typed(unlearn, monkeypatch, lines, cut.base, cut.folder)
    assert code == 0
    assert "more than the 512" in err and out.count("pruned: ") == 1
    code, _, err = unlearn("chat", cut.base, cut.folder, "--prompt", "dogs " * 900)
    assert code == 2 and "more than the 512" in err


def test_a_chat_template_is_used_if_both_have_one(
    unlearn: Unlearn, cut: Release, base: Path
) -> None:
    arguments = (base, cut.folder)
    chat = asked(unlearn, *arguments)
    (expected,) = generate(base, [f"user : {PROMPT} the"], "bfloat16", max_new_tokens=12)
    assert chat["base"]["answer"] == expected
    plain = asked(unlearn, *arguments, "--no-chat-template")
    assert plain["base"]["answer"] != expected
    (cut.folder / "chat_template.jinja").unlink()
    assert asked(unlearn, *arguments) == plain


def test_a_chat_is_remembered_until_it_is_reset(base: Path, cut: Release) -> None:
    speakers = Speaker("base", base, "float32"), Speaker("pruned", cut.folder, "float32")
    talk = Conversation(speakers, Manner(8), with_template=True)
    first = list(talk.ask("dogs"))[-1]
    second = list(talk.ask("dogs"))[-1]
    assert second != first
    assert [m["content"] for m in talk.said[1]] == ["dogs", first[1], "dogs", second[1]]
    unread = talk.ask("cat")
    next(unread)
    unread.close()
    assert len(talk.said[0]) == 4  # what was stopped is not remembered
    talk.reset()
    assert list(talk.ask("dogs"))[-1] == first


def test_a_broken_chat_template_is_explained(unlearn: Unlearn, cut: Release, base: Path) -> None:
    (base / "chat_template.jinja").write_text("{{ raise_exception('no users') }}")
    code, _, err = unlearn("chat", base, cut.folder, "--prompt", PROMPT)
    assert code == 2 and "no users" in err and "--no-chat-template" in err


def test_sampled_answers_follow_the_seed(unlearn: Unlearn, cut: Release) -> None:
    warm = ("--temperature", "2", "--seed")
    one, again, other = (
        asked(unlearn, cut.base, cut.folder, *warm, seed) for seed in ("1", "1", "2")
    )
    assert one == again
    assert one["base"] != other["base"] and one["pruned"] != other["pruned"]


# ── the screen ───────────────────────────────────────────────────────────────────────────────────

NAMES = ("one", "other\x1b[31m[red]")


def shown(answers: Iterator[tuple[str, str]] | list[tuple[str, str]], width: int) -> list[str]:
    """The lines that stay on a terminal."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=20)
    show_answers(NAMES, answers, console)
    assert isinstance(console.file, io.StringIO)
    last = console.file.getvalue().rpartition("\x1b[2K")[2]
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", last).splitlines()


def test_answers_stand_side_by_side_where_there_is_room() -> None:
    lines = shown([("a " * 30 + "end", "b")], width=100)
    assert "base: one" in lines[0] and "pruned: other" in lines[0]
    assert (
        lines[1].rstrip().endswith("a    b") and lines[2].startswith("a ") and "b" not in lines[2]
    )
    assert max(map(len, lines)) <= 100
    lines = shown([("first", "second")], width=60)
    assert [line.strip() for line in lines if line.strip()] == [
        "base: one",
        "first",
        "pruned: other?[31m[red]",
        "second",
    ]


def test_a_model_cannot_steer_the_terminal() -> None:
    console = Console(file=io.StringIO(), width=80)
    show_answers(("a", "b"), [("\x1b]0;title\x07[red]x[/]", "tab\there\r")], console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "\x1b" not in text and "\x07" not in text and "\r" not in text
    assert "[red]x[/]" in text


def test_an_answer_that_is_stopped_stays_as_far_as_it_came() -> None:
    def answers() -> Iterator[tuple[str, str]]:
        yield "as far as", "this"
        raise KeyboardInterrupt

    lines = "\n".join(shown(answers(), width=100))
    assert "as far as" in lines and "(stopped, and not remembered)" in lines


def test_long_answers_are_shown_whole_in_the_end() -> None:
    long = "\n".join(f"line {number}" for number in range(99))
    for width in (60, 120):
        lines = "\n".join(shown([(long, long)], width))
        assert "line 0" in lines and "line 98" in lines
