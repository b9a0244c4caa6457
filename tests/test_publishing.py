"""Publishing: the Hub's real client, a Hub on this machine, and everything that can go wrong."""

from __future__ import annotations

import json
import os
import pty
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import Result, Unlearn
from released import Release, edit, flip_bit, renew_manifest
from tiny_recipe import PASSING
from transformers import AutoModelForCausalLM
from writable_hub import TOKEN, Fault, WritableHub

from pipeline.cache import digest_of_file, read_json
from pipeline.export.manifest import NAME as MANIFEST
from pipeline.release.card import card_text

Make = Callable[..., Release]
FAILING = [{"task": "next_token_code", "metric": "loss", "drops_at_least": 9.0}]
UP = "model.layers.1.mlp.up_proj.weight"
WEIGHTS = "model.safetensors"


@pytest.fixture
def hub(writable_hub: WritableHub) -> WritableHub:
    return writable_hub


def publish(made: Release, *arguments: str | Path, to: str = "org/no-x") -> Result:
    result = made.check("publish", "--to", to, "--yes", "--json", *arguments)
    assert TOKEN not in result.out + result.err
    assert "Traceback" not in result.err and "something broke" not in result.err
    return result


def published(made: Release, *arguments: str | Path, to: str = "org/no-x") -> dict[str, Any]:
    result = publish(made, *arguments, to=to)
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out.splitlines()[-1])
    return found


def refused(result: Result, code: int, *words: str) -> None:
    assert (result.code, result.out) == (code, ""), result
    for word in words:
        assert word in result.err, result.err


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# ── what goes well ───────────────────────────────────────────────────────────────────────────────


def test_from_a_folder_to_whoever_loads_and_checks_it(
    release: Make, hub: WritableHub, unlearn: Unlearn, tmp_path: Path
) -> None:
    made = release(gates=PASSING)
    before = files_of(made.folder)
    found = published(made)
    assert hub.files("org/no-x") == before == files_of(made.folder)
    assert hub.repositories["org/no-x"].private
    assert (found["commit"], found["made"]) == (hub.repositories["org/no-x"].branches["main"], True)
    assert len(hub.repositories["org/no-x"].commits) == 2  # the Hub's own, and ours
    assert hub.repositories["org/no-x"].messages[found["commit"]].endswith(": PASS")
    assert set(found["send"]) == set(before)
    assert found["send_bytes"] == sum(map(len, before.values()))

    model = AutoModelForCausalLM.from_pretrained("org/no-x", cache_dir=tmp_path / "theirs")
    assert model.config.intermediate_size == 48
    name = f"org/no-x@{found['commit']}"
    result = unlearn("verify", name, "--base", made.base, "--quiet", "--json")
    assert result.code == 0, result.out + result.err
    assert json.loads(result.out)["manifest_sha256"] == found["manifest_sha256"]
    assert found["manifest_sha256"] == digest_of_file(made.folder / MANIFEST)


def test_again_nothing_is_sent(release: Make, hub: WritableHub) -> None:
    made = release(gates=PASSING)
    first = published(made)
    hub.requests.clear()
    second = published(made)
    assert (second["commit"], second["send"], second["delete"]) == (first["commit"], {}, [])
    assert not hub.sent("PUT") and not any("/commit/" in line for line in hub.requests)


def test_an_update_sends_what_differs_and_deletes_what_is_gone(
    release: Make, hub: WritableHub
) -> None:
    made = release(gates=PASSING)
    hub.make("org/no-x", private=True, files={**files_of(made.folder), "old/x.bin": b"x"})
    hub.repositories["org/no-x"].commits[hub.repositories["org/no-x"].branches["main"]][
        "generation_config.json"
    ] = b"{}"
    found = published(made)
    assert (list(found["send"]), found["delete"]) == (["generation_config.json"], ["old/x.bin"])
    assert hub.files("org/no-x") == files_of(made.folder)
    assert not hub.sent("PUT")


def test_a_branch_a_tag_a_message_and_the_public(release: Make, hub: WritableHub) -> None:
    made = release(gates=PASSING)
    options = ("--public", "--revision", "v1-branch", "--tag", "v1", "--message", "First one")
    found = published(made, *options)
    there = hub.repositories["org/no-x"]
    assert not there.private and not found["private"]
    assert there.branches["v1-branch"] == there.tags["v1"] == found["commit"]
    assert there.messages[found["commit"]] == "First one"
    assert hub.files("org/no-x", "main") == {}
    assert published(made, *options)["commit"] == found["commit"]
    refused(publish(made, "--public", "--tag", "v1"), 2, "the tag 'v1' is there")
    refused(publish(made, "--public", "--revision", "v1"), 2, "'v1' is a tag there")


def test_a_pull_request(release: Make, hub: WritableHub, unlearn: Unlearn) -> None:
    made = release(gates=PASSING)
    head = hub.make("theirs/no-x", private=False)
    found = published(made, "--pull-request", "--public", to="theirs/no-x")
    assert found["pull_request_url"] == f"{hub.url}/theirs/no-x/discussions/1"
    assert hub.repositories["theirs/no-x"].branches["main"] == head
    assert hub.files("theirs/no-x", "refs/pr/1") == files_of(made.folder)
    result = unlearn("verify", "theirs/no-x@refs/pr/1", "--base", made.base, "--quiet")
    assert result.code == 0, result.out + result.err


def test_a_dry_run_changes_nothing(release: Make, hub: WritableHub) -> None:
    made = release(gates=PASSING)
    found = published(made, "--dry-run")
    assert not found["published"] and found["made"] and WEIGHTS in found["send"]
    assert hub.repositories == {}
    text = made.check("publish", "--to", "org/no-x", "--dry-run").out
    assert "org/no-x (private, made for it), branch main" in text and "Nothing was sent" in text


def test_a_recipe_publishes_what_passed(
    release: Make, hub: WritableHub, unlearn: Unlearn, tmp_path: Path
) -> None:
    made = release(gates=PASSING)
    (made.recipe.parent / "plot.png").write_bytes(b"\x89PNG")
    where = "publish={to: org/no-x, tag: v1, extra: [plot.png]}"
    run = ("run", made.recipe, "--out", tmp_path / "out", "--set", where, "--quiet")
    refused(unlearn(*run), 2, "nobody is here to agree", "--yes")
    text = unlearn("check", made.recipe, "--set", where).out
    assert "Publish: org/no-x (private), if it passes" in text
    result = unlearn(*run, "--yes", "--json")
    assert result.code == 0, result.err
    events = [json.loads(line) for line in result.out.splitlines()]
    assert [event["event"] for event in events] == ["result", "published"]
    files = hub.files("org/no-x", "v1")
    assert files["extra/plot.png"] == b"\x89PNG"
    manifest = read_json(tmp_path / "out/tiny" / MANIFEST)
    assert "publish" not in manifest["recipe"]  # it is what makes the result, and nothing else
    assert manifest["run_key"] == read_json(made.folder / MANIFEST)["run_key"]


def test_a_recipe_publishes_nothing_that_failed(
    release: Make, hub: WritableHub, unlearn: Unlearn, tmp_path: Path
) -> None:
    made = release(gates=FAILING)
    run = (
        "run",
        made.recipe,
        "--out",
        tmp_path / "out",
        "--yes",
        "--set",
        "publish={to: org/no-x}",
    )
    result = unlearn(*run)
    assert result.code == 1 and "Not published: the verdict is FAIL" in result.err
    assert hub.repositories == {}
    result = unlearn(*run, "--set", "gates=[]")
    assert result.code == 2 and "a recipe without gates cannot pass" in result.err
    result = unlearn(*run[:4], "--yes", "--set", "publish={to: nowhere}")
    assert result.code == 2 and "organisation/name" in result.err


def test_a_run_that_could_not_be_published_does_not_begin(
    release: Make, hub: WritableHub, unlearn: Unlearn, tmp_path: Path
) -> None:
    made = release(gates=PASSING)
    hub.make("org/no-x", private=True, files={"else.bin": b"x"})
    run = ("run", made.recipe, "--out", tmp_path / "out", "--yes", "--quiet")
    refused(unlearn(*run, "--set", "publish={to: org/no-x}"), 2, "did not publish (else.bin)")
    refused(unlearn(*run, "--set", "publish={to: nobody/no-x}"), 2, "no organisation 'nobody'")
    refused(unlearn(*run, "--set", "publish={to: org/y, extra: [x.png]}"), 2, "no such file to add")
    assert not (tmp_path / "out").exists()


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no proof": (edit(MANIFEST, lambda m: m.pop("proof")), "has no proof"),
    "nonsense for a proof": (edit(MANIFEST, lambda m: m.update(proof=[])), "has no proof"),
    "a proof without figures": (
        edit(MANIFEST, lambda m: m["proof"].update(max_difference=None)),
        "has no proof",
    ),
    "a failed proof": (
        edit(MANIFEST, lambda m: m["proof"].update(max_difference=1.0)),
        "its proof does not hold",
    ),
    "a changed weight": (lambda f: (flip_bit(UP)(f), renew_manifest(f)), f"not what it says: {UP}"),
    "an unknown file": (lambda f: (f / "x.py").write_text("x"), "x.py: the manifest does not list"),
    "another card": (
        lambda f: ((f / "README.md").write_text("x"), renew_manifest(f)),
        "README.md: is not the card",
    ),
    "a name outside": (
        edit(MANIFEST, lambda m: m["files"].update({"../x": {"sha256": "0" * 64, "bytes": 1}})),
        "outside the folder",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_as_it_should_be_is_refused(release: Make, hub: WritableHub, what: str) -> None:
    change, words = REFUSED[what]
    made = release(gates=PASSING)
    change(made.folder)
    refused(publish(made, "--even-if-failed"), 2, words)
    assert hub.repositories == {}


@pytest.mark.parametrize(("gates", "verdict"), [(FAILING, "FAIL"), ([], "UNJUDGED")])
def test_what_did_not_pass_is_published_only_when_that_is_meant(
    release: Make, hub: WritableHub, unlearn: Unlearn, gates: list[Any], verdict: str
) -> None:
    made = release(gates=gates)
    before = files_of(made.folder)
    refused(publish(made), 2, f"its verdict is {verdict}", "--even-if-failed")
    found = published(made, "--even-if-failed")
    assert found["even_if_failed"] and set(found["send"]) == set(before)
    files = hub.files("org/no-x")
    assert "`--even-if-failed`" in files["README.md"].decode()
    manifest = json.loads(files[MANIFEST])
    assert manifest["publication"] == {"even_if_failed": True, "extra": []}
    assert files["README.md"].decode() == card_text(manifest)
    assert files_of(made.folder) == before  # the publisher's folder stays as it was
    verified(made, found, unlearn)
    again = published(made, "--even-if-failed")
    assert again["commit"] == found["commit"]


def verified(made: Release, found: dict[str, Any], unlearn: Unlearn) -> None:
    """What is there holds under `verify`, and speaks in one voice under `validate`."""
    name = f"{found['repository']}@{found['commit']}"
    options = (name, "--base", made.base, "--quiet", "--json")
    result = unlearn("verify", *options, "--manifest-sha256", found["manifest_sha256"])
    assert result.code == 0, result.out + result.err
    result = unlearn("validate", *options, "--recipe", made.recipe)
    assert json.loads(result.out)["findings"] == [], result.out


def test_without_maps_nothing_is_published_that_the_texts_do_not_show(
    release: Make, hub: WritableHub
) -> None:
    made = release("llama", "compensate.publish_maps=false", gates=PASSING)
    refused(publish(made), 2, "cannot be verified", "--recompute")
    assert published(made, "--recompute", "--recipe", made.recipe)["published"]


def test_files_are_added_where_nothing_loads_them(
    release: Make, hub: WritableHub, unlearn: Unlearn, tmp_path: Path
) -> None:
    made = release(gates=PASSING)
    for name in ("curve.png", "notes.md", "model.gguf", "evil.py", "a b.png"):
        (tmp_path / name).write_bytes(b"content")
    for name in ("model.gguf", "evil.py", "a b.png", "gone.png"):
        words = "no such file" if name == "gone.png" else "cannot be added"
        refused(publish(made, "--extra", tmp_path / name), 2, words)
    found = published(made, "--extra", tmp_path / "curve.png", "--extra", tmp_path / "notes.md")
    files = hub.files("org/no-x")
    assert files["extra/curve.png"] == files["extra/notes.md"] == b"content"
    assert "[extra/curve.png](extra/curve.png)" in files["README.md"].decode()
    verified(made, found, unlearn)

    theirs = tmp_path / "theirs"
    for name, data in files.items():
        (theirs / name).parent.mkdir(parents=True, exist_ok=True)
        (theirs / name).write_bytes(data)
    made.folder = theirs
    (theirs / "extra/evil.py").write_text("x")
    renew_manifest(theirs)
    code, result = made.verify()
    found = [(f["where"], f["what"]) for f in result["findings"]]
    assert code == 1 and [where for where, _ in found] == ["extra/evil.py", MANIFEST]
    assert "publication.extra is" in found[1][1]


def test_a_signature_is_sent_or_nothing_is_added(
    release: Make, hub: WritableHub, tmp_path: Path
) -> None:
    made = release(gates=PASSING)
    (made.folder / "model.sig").write_text("{}")
    (tmp_path / "a.png").write_bytes(b"x")
    refused(publish(made, "--extra", tmp_path / "a.png"), 2, "is signed", "model.sig")
    assert "model.sig" in published(made)["send"]


def test_a_release_of_an_earlier_version_is_published_as_it_is(
    release: Make, hub: WritableHub, tmp_path: Path
) -> None:
    made = release(gates=PASSING)
    edit(MANIFEST, lambda m: m.update(format=2))(made.folder)
    (tmp_path / "a.png").write_bytes(b"x")
    refused(publish(made, "--extra", tmp_path / "a.png"), 2, "format 2", "make the release again")
    published(made)
    assert hub.files("org/no-x") == files_of(made.folder)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--pull-request", "--revision", "dev"], "made against main"),
        (["--pull-request", "--tag", "v1"], "a pull request is not yet"),
        (["--revision", "a" * 40], "a commit cannot be published to"),
    ],
)
def test_options_that_contradict_each_other(
    release: Make, hub: WritableHub, options: list[str], words: str
) -> None:
    refused(publish(release(gates=PASSING), *options), 2, words)
    assert hub.requests == []


# ── who asks, and who may ────────────────────────────────────────────────────────────────────────


def test_nobody_to_ask_is_an_error_before_anything_is_done(release: Make, hub: WritableHub) -> None:
    made = release(gates=PASSING)
    refused(made.check("publish", "--to", "org/no-x"), 2, "nobody is here", "--yes", "--dry-run")
    assert hub.requests == []


@pytest.mark.parametrize(("answer", "code"), [(b"y\n", 0), (b"n\n", 2), (b"\n", 2)])
def test_a_terminal_is_asked_with_all_in_sight(
    release: Make,
    hub: WritableHub,
    monkeypatch: pytest.MonkeyPatch,
    answer: bytes,
    code: int,
) -> None:
    made = release(gates=PASSING)
    controller, terminal = pty.openpty()
    os.write(controller, answer)
    with os.fdopen(terminal) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        result = made.check("publish", "--to", "org/no-x")
    os.close(controller)
    assert result.code == code, result.err
    assert "Publish this?" in result.err and WEIGHTS in result.err and "kB" in result.err
    assert ("org/no-x" in hub.repositories) is (code == 0)


def test_no_token_a_wrong_one_and_one_that_may_only_read(
    release: Make, hub: WritableHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = release(gates=PASSING)
    hub.tokens["hf_reads"] = {"name": "me", "orgs": ["org"], "role": "read"}
    monkeypatch.setenv("HF_TOKEN", "hf_reads")
    refused(publish(made), 2, "may only read", "HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    refused(publish(made), 2, "does not accept this token")
    monkeypatch.delenv("HF_TOKEN")
    refused(publish(made), 2, "there is no token", "hf auth login")
    assert hub.repositories == {}


def test_the_token_is_neither_shown_nor_stored(
    release: Make, hub: WritableHub, tmp_path: Path, warm_cache: Path
) -> None:
    made = release(gates=PASSING)
    result = made.unlearn("publish", made.folder, "--base", made.base, "--to", "org/no-x", "--yes")
    assert result.code == 0 and TOKEN not in result.out + result.err
    for folder in (tmp_path, warm_cache):
        for name, data in files_of(folder).items():
            assert TOKEN.encode() not in data, name
    assert TOKEN.encode() not in b"".join(hub.files("org/no-x").values())


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("theirs/no-x", "no right to write"),
        ("nobody/no-x", "no organisation 'nobody'"),
        ("no-x", "such as me/no-x"),
        ("org/a/b", "not a valid name"),
        ("org/a b", "not a valid name"),
    ],
)
def test_places_that_are_not_ours(release: Make, hub: WritableHub, to: str, words: str) -> None:
    refused(publish(release(gates=PASSING), to=to), 2, words)
    assert hub.repositories == {}


def test_what_others_put_there_is_not_replaced(release: Make, hub: WritableHub) -> None:
    made = release(gates=PASSING)
    hub.make("org/no-x", private=True, files={"model.bin": b"x"})
    refused(publish(made), 2, "did not publish (model.bin)", "--force")
    assert hub.files("org/no-x") == {"model.bin": b"x"}
    assert published(made, "--force")["delete"] == ["model.bin"]

    edit(MANIFEST, lambda m: m.update(name="other"))(made.folder)
    refused(publish(made), 2, "a release of recipe 'tiny', and this is 'other'", "--force")


def test_what_everybody_sees_is_meant_for_everybody(release: Make, hub: WritableHub) -> None:
    made = release(gates=PASSING)
    hub.make("org/seen", private=False, files={"README.md": b"# Soon"})
    hub.make("org/hidden", private=True)
    refused(publish(made, to="org/seen"), 2, "everybody can see", "--public")
    refused(publish(made, "--public", to="org/hidden"), 2, "is private", "--public")
    assert published(made, "--public", to="org/seen")["published"]


def test_metadata_that_the_hub_refuses(release: Make, hub: WritableHub) -> None:
    made = release("llama", "language=English", gates=PASSING)
    refused(publish(made), 2, "ISO 639", "README.md")
    assert hub.files("org/no-x") == {}


# ── what breaks in the middle ────────────────────────────────────────────────────────────────────


def test_a_connection_that_is_lost_while_weights_are_sent(release: Make, hub: WritableHub) -> None:
    made = release(gates=PASSING)
    weights = digest_of_file(made.folder / WEIGHTS)
    hub.faults = [Fault(f"PUT /storage/{weights}")]
    result = publish(made)
    refused(result, 3, "the Hub did not take it", "the same command")
    assert hub.files("org/no-x") == {}  # nothing half
    maps = digest_of_file(made.folder / "compensation/maps.safetensors")
    assert set(hub.stored) == {maps}

    hub.faults, hub.requests[:] = [], []
    published(made)
    assert hub.sent("PUT") == [f"PUT /storage/{weights}"]  # and the maps not again
    assert hub.files("org/no-x") == files_of(made.folder)


def test_a_connection_that_is_lost_once_is_tried_again(release: Make, hub: WritableHub) -> None:
    hub.faults = [Fault("PUT /storage/", times=1)]
    assert published(release(gates=PASSING))["published"]


@pytest.mark.parametrize("fault", [500, 503, 0], ids=["500", "503", "dropped"])
def test_a_commit_that_fails_is_made_by_the_next_call(
    release: Make, hub: WritableHub, fault: int
) -> None:
    made = release(gates=PASSING)
    hub.faults = [Fault("POST /api/models/org/no-x/commit", fault)]
    refused(publish(made), 3, "the Hub did not take it")
    assert hub.files("org/no-x") == {} and len(hub.stored) == 2
    hub.faults, hub.requests[:] = [], []
    published(made)
    assert not hub.sent("PUT")
    assert hub.files("org/no-x") == files_of(made.folder)


def test_a_commit_whose_answer_is_lost_is_not_made_twice(release: Make, hub: WritableHub) -> None:
    made = release(gates=PASSING)
    hub.faults = [Fault("POST /api/models/org/no-x/commit", after=True)]
    refused(publish(made, "--tag", "v1"), 3, "the Hub did not take it")
    hub.faults = []
    found = published(made, "--tag", "v1")
    there = hub.repositories["org/no-x"]
    assert len(there.commits) == 2 and there.tags["v1"] == found["commit"]


def test_a_hub_that_holds_other_bytes_is_found_out(release: Make, hub: WritableHub) -> None:
    made = release(gates=PASSING)
    hub.spoils = True
    result = publish(made, "--tag", "v1")
    refused(result, 3, "does not hold what was sent", WEIGHTS, "do not use this commit")
    assert hub.repositories["org/no-x"].tags == {}


@pytest.mark.parametrize(
    ("request_", "status", "code", "words"),
    [
        ("POST /org/no-x.git/info/lfs", 403, 3, "the Hub has no room for it"),
        ("POST /api/repos/create", 403, 2, "no right to write there (Private repository"),
        ("POST /api/models/org/no-x/commit", 412, 3, "something else was changed there"),
        ("POST /api/models/org/no-x/commit", 429, 3, "the same command again"),
        ("GET /api/whoami-v2", 500, 3, "the same command again"),
        ("GET /api/models/org/no-x/tree", 502, 3, "the same command again"),
        ("POST /api/models/org/no-x/tag", 409, 3, "something else was changed there"),
    ],
)
def test_what_the_hub_answers_is_said_in_words(
    release: Make, hub: WritableHub, request_: str, status: int, code: int, words: str
) -> None:
    message = (
        "Private repository storage limit reached" if "lfs" in request_ else "Private repository"
    )
    hub.faults = [Fault(request_, status, message)]
    refused(publish(release(gates=PASSING), "--tag", "v1"), code, words)


def test_somebody_who_commits_meanwhile_is_not_overwritten(
    release: Make, hub: WritableHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipeline.publishing

    made = release(gates=PASSING)
    hub.make("org/no-x", private=True)
    send = pipeline.publishing.send

    def later(*arguments: Any) -> Any:
        there = hub.repositories["org/no-x"]
        head = there.branches["main"]
        there.branches["main"] = there.commit(head, {"theirs.txt": b"x"}, "theirs")
        return send(*arguments)

    monkeypatch.setattr(pipeline.publishing, "send", later)
    refused(publish(made), 3, "something else was changed there")
    assert hub.files("org/no-x") == {"theirs.txt": b"x"}


def test_without_a_network(
    release: Make, hub: WritableHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = release(gates=PASSING)
    hub.stop()
    refused(publish(made), 3, "the Hub did not take it")


def test_a_file_that_changes_while_it_is_published(
    release: Make, hub: WritableHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipeline.publishing

    made = release(gates=PASSING)
    check = pipeline.publishing.check_tag
    monkeypatch.setattr(
        pipeline.publishing,
        "check_tag",
        lambda *a: (flip_bit(UP)(made.folder), check(*a)),
    )
    refused(publish(made), 3, "was changed while it was published", WEIGHTS)
    assert hub.files("org/no-x") == {}


def test_a_release_on_the_hub_is_published_elsewhere(
    release: Make, hub: WritableHub, unlearn: Unlearn
) -> None:
    made = release(gates=PASSING)
    first = published(made)
    shutil.rmtree(made.folder)
    result = unlearn(
        *("publish", f"org/no-x@{first['commit']}", "--base", made.base),
        *("--to", "me/copy", "--yes", "--quiet"),
    )
    assert result.code == 0, result.err
    assert hub.files("me/copy") == hub.files("org/no-x")


# ── what is on the Hub, wherever a checkpoint is taken ───────────────────────────────────────────


@pytest.mark.parametrize("policy", ["uniform", "ragged"])
def test_every_verb_takes_what_is_on_the_hub(
    release: Make, hub: WritableHub, unlearn: Unlearn, policy: str
) -> None:
    made = release("llama", f"select.policy={policy}", gates=PASSING)
    found = published(made, "--tag", "v1")
    name = f"org/no-x@{found['commit']}"
    hub.make("org/base", private=False, files=files_of(made.base))
    verified(made, found, unlearn)
    result = unlearn("verify", "org/no-x@v1", "--base", "org/base", "--quiet")
    assert result.code == 0, result.out + result.err
    hub.requests.clear()
    result = unlearn("inspect", name, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["units_of_a_layer"]["ffn"] >= 48
    result = unlearn("diff", name, made.folder, "--json", "--quiet")
    assert result.code == 0 and json.loads(result.out)["same"]["plan"], result.err
    result = unlearn("chat", "org/base", name, "--prompt", "the", "--max-new-tokens", "2", "--json")
    assert result.code == 0 and json.loads(result.out)["pruned"]["name"] == name, result.err
    if policy == "uniform":
        result = unlearn("export", "org/no-x@v1", "--quiet")
        assert result.code == 0 and Path("no-x-F16.gguf").is_file(), result.err


def test_a_report_needs_the_manifest_alone(
    release: Make, hub: WritableHub, unlearn: Unlearn
) -> None:
    made = release(gates=PASSING)
    published(made)
    hub.requests.clear()
    result = unlearn("report", "org/no-x", "--out", "report", "--quiet")
    assert result.code == 0, result.err
    assert Path("report/report.html").read_bytes() == (made.folder / "report.html").read_bytes()
    commit = hub.repositories["org/no-x"].branches["main"]
    asked = {r for r in hub.requests if r.startswith("GET /org/no-x/resolve")}
    assert asked == {f"GET /org/no-x/resolve/{commit}/{MANIFEST}"}


def test_a_difference_needs_manifests_and_samples_and_no_weights(
    release: Make, hub: WritableHub, unlearn: Unlearn
) -> None:
    made = release(gates=PASSING)
    published(made)
    hub.requests.clear()
    result = unlearn("diff", "org/no-x", made.folder, "--json", "--quiet")
    assert result.code == 0, result.err
    found = json.loads(result.out.splitlines()[-1])
    assert found["same"] == dict.fromkeys(("base", "plan", "weights", "recipe"), True)
    assert {row["standard_error"] for row in found["results"]} == {0.0}
    commit = hub.repositories["org/no-x"].branches["main"]
    samples = {f"samples/pruned/next_token_{name}.jsonl" for name in ("code", "prose")}
    assert {r for r in hub.requests if r.startswith("GET /org/no-x/resolve")} == {
        f"GET /org/no-x/resolve/{commit}/{name}" for name in (MANIFEST, *samples)
    }
    result = unlearn("diff", "org/none", made.folder)
    assert result.code == 2 and "no such model on the Hub" in result.err
