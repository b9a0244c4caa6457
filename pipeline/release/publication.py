"""A release as it is published: its own files, and what publishing adds to them.

The release's folder is never changed. Where publishing adds something, card and manifest are made
anew, in the order of the hashes: the manifest says what was added, the card comes out of the
manifest, and the manifest's list of files holds the hashes of both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cache import json_bytes
from pipeline.errors import InputError
from pipeline.export.manifest import NAME as MANIFEST
from pipeline.export.manifest_schema import FORMAT
from pipeline.release.card import NAME as CARD
from pipeline.release.card import card_text
from pipeline.release.checks.files import EXTRA, EXTRA_NAME, EXTRA_SUFFIXES, SIGNATURE


@dataclass(frozen=True)
class File:
    """One file of a publication.

    Attributes:
        content: where it is, or its bytes if it is in no folder.
        sha256: what the manifest says of it, or of the manifest itself.
        size: in bytes.
    """

    content: Path | bytes
    sha256: str
    size: int

    def read(self) -> bytes:
        """Its bytes."""
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


@dataclass(frozen=True)
class Publication:
    """What is published: the manifest's files, the manifest, and the signature if there is one.

    Attributes:
        manifest: its content.
        files: every file, by name.
    """

    manifest: dict[str, Any]
    files: dict[str, File]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())


def publication_of(
    folder: Path, manifest: dict[str, Any], *, even_if_failed: bool, extra: Sequence[Path]
) -> Publication:
    """Put together what is published of a release that was verified.

    Args:
        folder: the release.
        manifest: its manifest.
        even_if_failed: its verdict is overridden, which the card then says.
        extra: files to add.

    Raises:
        InputError: a file cannot be added, or the release is signed and something would be added.
    """
    added = added_files(extra)
    earlier = manifest.get("publication") or {"even_if_failed": False, "extra": []}
    section = {
        "even_if_failed": even_if_failed or earlier["even_if_failed"],
        "extra": sorted({*earlier["extra"], *added}),
    }
    changed: dict[str, File] = {}
    if added or section != earlier:
        _check_can_say_more(folder, manifest)
        said = {key: value for key, value in manifest.items() if key != "files"}
        said["publication"] = section
        changed = {**added, CARD: _in_memory(card_text(said).encode())}
        listed = {name: {"sha256": f.sha256, "bytes": f.size} for name, f in changed.items()}
        manifest = said | {"files": dict(sorted((manifest["files"] | listed).items()))}
        changed[MANIFEST] = _in_memory(json_bytes(manifest))
    else:
        changed[MANIFEST] = _on_disk(folder / MANIFEST)
        if (folder / SIGNATURE).is_file():
            changed[SIGNATURE] = _on_disk(folder / SIGNATURE)
    own = {
        name: File(folder / name, entry["sha256"], entry["bytes"])
        for name, entry in manifest["files"].items()
        if name not in changed
    }
    return Publication(manifest, dict(sorted({**own, **changed}.items())))


def added_files(extra: Sequence[Path]) -> dict[str, File]:
    """The files to add, by their names in the release.

    Raises:
        InputError: one is not there, or is of a kind that is not added.
    """
    found: dict[str, File] = {}
    for path in extra:
        name = f"{EXTRA}/{path.name}"
        if not path.is_file():
            raise InputError("there is no such file to add", where=str(path))
        if not EXTRA_NAME.fullmatch(path.name) or path.suffix not in EXTRA_SUFFIXES:
            raise InputError(
                "a file of this name cannot be added to a release: nothing that a program may load "
                "goes in unchecked",
                where=str(path),
                remedy=f"add images and texts ({' '.join(EXTRA_SUFFIXES)}) with plain names; other "
                "forms of the weights, such as GGUF, belong in a repository of their own",
            )
        if name in found:
            raise InputError(f"two files would both be {name}", where=str(path))
        found[name] = _on_disk(path)
    return found


def _check_can_say_more(folder: Path, manifest: dict[str, Any]) -> None:
    if manifest["format"] != FORMAT:
        raise InputError(
            f"its manifest has format {manifest['format']}, which cannot say what publishing adds",
            where=str(folder / MANIFEST),
            remedy=f"make the release again: this version writes format {FORMAT}",
        )
    if (folder / SIGNATURE).is_file():
        raise InputError(
            "this release is signed, and its signature would not hold for what publishing adds",
            where=str(folder / SIGNATURE),
            remedy="remove the signature and publish; then sign what `hf download` gives, and "
            "publish that",
        )


def _on_disk(path: Path) -> File:
    content = path.read_bytes()
    return File(path, hashlib.sha256(content).hexdigest(), len(content))


def _in_memory(content: bytes) -> File:
    return File(content, hashlib.sha256(content).hexdigest(), len(content))
