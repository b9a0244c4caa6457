import io
import json

import pytest
from rich.console import Console

from pipeline import progress
from pipeline.progress import Progress, Style


def run(style: Style) -> str:
    stream = io.StringIO()
    console = Console(file=stream, highlight=False, force_terminal=style == "terminal", width=100)
    shown = Progress(style, console)
    with shown.stage("score [forget]"):
        shown.say("coverage 2/2 [layers]", layers=2)
        with shown.bar("code", 4, "tokens") as advance:
            advance(1)
            advance(3)
    return stream.getvalue()


def test_plain_lines_name_stages_progress_and_messages() -> None:
    lines = run("plain").splitlines()
    assert lines[0].startswith("> score")
    assert "  coverage 2/2 [layers]".strip() in lines[1]
    assert lines[2].startswith("  code: 4/4 tokens, ")
    assert lines[-1].startswith("  done in ")


def test_plain_lines_come_at_most_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    shown = Progress("plain", Console(file=stream))
    with shown.bar("code", 100, "tokens") as advance:
        for _ in range(100):
            now[0] += 1
            advance(1)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == "  code: 10/100 tokens, 1 tokens/s, 90 s left"


def test_json_is_one_object_a_line() -> None:
    events = [json.loads(line) for line in run("json").splitlines()]
    assert [event["event"] for event in events] == ["stage", "message", "progress", "stage"]
    assert events[1] == {"event": "message", "text": "coverage 2/2 [layers]", "layers": 2}
    assert events[2]["done"] == events[2]["total"] == 4


def test_quiet_says_nothing() -> None:
    assert run("quiet") == ""


def test_terminal_draws_a_bar() -> None:
    assert "code" in run("terminal")
