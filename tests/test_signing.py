"""Signatures of releases, with real keys; Sigstore itself cannot be reached from a test."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Unlearn
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from released import Release, edit, flip_bit, renew_manifest

from pipeline.cache import digest_of_file

Make = Callable[..., Release]
UP = "model.layers.1.mlp.up_proj.weight"
PASSWORD = "a secret"


def key_pair(folder: Path, name: str, password: str | None = None) -> tuple[Path, Path]:
    """PEM files of a private key and its public key."""
    key = ec.generate_private_key(ec.SECP256R1())
    sealed = (
        serialization.BestAvailableEncryption(password.encode())
        if password
        else serialization.NoEncryption()
    )
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    pem = serialization.Encoding.PEM
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, sealed))
    public.write_bytes(
        key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture
def signed(release: Make, tmp_path: Path, unlearn: Unlearn) -> tuple[Release, Path]:
    """A signed release, and the public key."""
    made = release()
    private, public = key_pair(tmp_path, "key")
    result = unlearn("sign", made.folder, "--private-key", private)
    assert (result.code, result.out) == (0, f"Signed: {made.folder / 'model.sig'}\n"), result
    return made, public


def test_a_signed_release_is_verified_wherever_it_lies(
    signed: tuple[Release, Path], tmp_path: Path
) -> None:
    made, public = signed
    assert made.verify()[0] == 0  # the signature is no stranger in the folder
    assert made.verify("--public-key", public)[0] == 0
    blobs, snapshot = tmp_path / "models--org--m/blobs", tmp_path / "models--org--m/snapshots/1"
    blobs.mkdir(parents=True)
    for path in made.folder.rglob("*"):  # as the Hub's cache keeps it
        if path.is_file():
            link = snapshot / path.relative_to(made.folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            blob = blobs / digest_of_file(path)
            shutil.copyfile(path, blob)
            link.symlink_to(os.path.relpath(blob, link.parent))
    (snapshot / ".gitattributes").write_text("*.safetensors filter=lfs")
    made.folder = snapshot
    assert made.verify("--public-key", public) == (0, made.verify("--public-key", public)[1])


@pytest.mark.parametrize("forged", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        flip_bit(UP),
        edit("evaluation.json", lambda e: e.update(verdict="PASS", level_of_each_gate=0.5)),
        lambda folder: (folder / "README.md").write_text("perfect"),
        lambda folder: (folder / "samples" / "more.jsonl").write_text(""),
        lambda folder: (folder / "README.md").unlink(),
        edit("pruning_manifest.json", lambda m: m.update(description="perfect")),
    ],
)
def test_whatever_changes_after_signing_is_caught(
    signed: tuple[Release, Path], change: Callable[[Path], object], forged: bool
) -> None:
    made, public = signed
    change(made.folder)
    if forged:
        renew_manifest(made.folder)
    code, found = made.verify("--public-key", public)
    assert (code, found["verdict"]) == (1, "DIFFERENT")
    assert found["findings"][0]["where"] == "model.sig"


def test_somebody_elses_signature_does_not_hold(
    signed: tuple[Release, Path], tmp_path: Path, unlearn: Unlearn
) -> None:
    made, public = signed
    _, other = key_pair(tmp_path, "other")
    code, found = made.verify("--public-key", other)
    assert (code, found["findings"][0]["where"]) == (1, "model.sig")
    (made.folder / "model.sig").write_text("{}")
    assert made.verify("--public-key", public)[0] == 1
    (made.folder / "model.sig").unlink()
    code, found = made.verify("--public-key", public)
    assert (code, found["findings"][0]["what"]) == (1, "is missing: the release is not signed")
    assert made.validate("--public-key", public)[0] == 1


def test_a_key_may_have_a_password(
    release: Make, tmp_path: Path, unlearn: Unlearn, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = release()
    private, public = key_pair(tmp_path, "key", PASSWORD)
    assert unlearn("sign", made.folder, "--private-key", private).code == 2
    monkeypatch.setenv("UNLEARN_KEY_PASSWORD", PASSWORD)
    assert unlearn("sign", made.folder, "--private-key", private).code == 0
    assert made.verify("--public-key", public)[0] == 0


def test_a_folder_that_is_not_its_manifests_is_not_signed(
    release: Make, tmp_path: Path, unlearn: Unlearn
) -> None:
    made = release()
    private, _ = key_pair(tmp_path, "key")
    flip_bit(UP)(made.folder)
    result = unlearn("sign", made.folder, "--private-key", private)
    assert result.code == 2 and "nothing was signed" in result.err
    assert "model.sig" not in os.listdir(made.folder)


@pytest.mark.parametrize("content", [None, "", "nonsense"])
def test_keys_that_are_none(release: Make, tmp_path: Path, content: str | None) -> None:
    made = release()
    key = tmp_path / "key.pem"
    if content is not None:
        key.write_text(content)
    for result in (
        made.unlearn("sign", made.folder, "--private-key", key),
        made.check("verify", "--public-key", key),
        made.check("verify", "--identity", "me@example.org"),
    ):
        assert result.code == 2
        assert result.err.startswith("unlearn: ") and "Traceback" not in result.err


def test_without_the_extra_it_is_said(
    release: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = release()
    monkeypatch.setitem(sys.modules, "model_signing", None)
    result = made.check("verify", "--public-key", tmp_path / "key.pub")
    assert result.code == 2
    assert "pip install 'unlearn-pipeline[sign]'" in result.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--identity", "a@b.c"], "means nothing without who vouches"),
        (["--identity-provider", "https://b.c"], "means nothing without who vouches"),
        (
            ["--identity", "a@b.c", "--identity-provider", "https://b.c", "--public-key", "k.pub"],
            "with a key or with an identity",
        ),
    ],
)
def test_options_that_would_check_less_than_they_seem_to(
    release: Make, options: list[str], words: str
) -> None:
    result = release().check("verify", *options)
    assert result.code == 2
    assert words in result.err
