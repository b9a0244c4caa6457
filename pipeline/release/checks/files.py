"""Files of a release: those that its manifest lists, and those that the base determines."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from packaging.version import InvalidVersion, Version

from pipeline.cache import digest_of_file, read_json
from pipeline.export.checkpoint import companions
from pipeline.export.manifest import NAME as MANIFEST
from pipeline.export.maps import NAME as MAPS
from pipeline.release.checks.findings import Finding
from pipeline.release.report.curves import NAME as CURVE
from pipeline.release.report.figures import NAMES as RESULTS
from pipeline.release.report.network import NAMES as NETWORK

SIGNATURE = "model.sig"
OUTSIDE = (MANIFEST, SIGNATURE, ".gitattributes")  # the only files that are not in the hashes
# What `hf download --local-dir` writes beside a download, a few lines each, and nothing loads.
DOWNLOAD = ".cache/huggingface"
OF_DOWNLOAD = (".gitignore", "CACHEDIR.TAG")  # and *.lock and *.metadata in download/
OF_DOWNLOAD_BYTES = 4096
TREE_BYTES = 1 << 20  # of trees/*.json, which lists every file of the repository
COMPARED_BYTES = 1 << 22  # at a time
# What publishing may add, in a folder of its own: no loader reads it, and nothing vouches for it.
EXTRA = "extra"
EXTRA_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
EXTRA_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".pdf", ".md", ".txt", ".csv")
# Results: for `validate`.
CLAIMS = (
    "README.md",
    "report.html",
    *(f"figures/{name}.svg" for name in (*RESULTS, CURVE, *NETWORK)),
    "evaluation.json",
    "samples/*/*.jsonl",
)
PLAIN = re.compile(r"[^/\x00-\x20.][^/\x00-\x1f]*(/[^/\x00-\x20.][^/\x00-\x1f]*)*")
EXPLAINED = (*CLAIMS, *(f"{EXTRA}/*{suffix}" for suffix in EXTRA_SUFFIXES))
# The library that wrote the file signs it. A base that was converted is signed by the reader's own
# version, so two that this program can run on may differ; of older ones some change the tokenizer.
SIGNED_BY_LIBRARY = "transformers_version"
OLDEST_LIBRARY = Version("5.0")


def check_hashes(
    folder: Path, manifest: dict[str, Any], digest: Callable[[Path], str] = digest_of_file
) -> list[Finding]:
    """Compare every file of a folder with the manifest's list of files.

    Args:
        folder: the release.
        manifest: its manifest.
        digest: SHA-256 (hex) of one file; by default it is read.
    """
    found = []
    listed: dict[str, Any] = manifest["files"]
    present = set(released_files(folder))
    for name, entry in sorted(listed.items()):
        if _escapes(name):
            found.append(Finding(MANIFEST, f"lists {name!r}, which is outside the folder"))
        elif not _is_inside(folder / name, folder):
            found.append(Finding(name, "is a link to a place outside of the release"))
        elif name not in present or not (folder / name).is_file():
            found.append(Finding(name, "the manifest lists this file, and it is missing"))
        elif not isinstance(entry, dict) or digest(folder / name) != entry.get("sha256"):
            found.append(Finding(name, "its SHA-256 is not the manifest's"))
        elif (size := (folder / name).stat().st_size) != entry.get("bytes"):
            found.append(Finding(name, f"has {size} bytes, the manifest says {entry.get('bytes')}"))
    found += [
        Finding(name, "the manifest does not list this file")
        for name in sorted(present - listed.keys())
    ]
    return found


def released_files(folder: Path) -> Iterator[str]:
    """Names of a release's files, without the few that no hash can cover."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                yield f"{name}/"  # an empty folder, which has a name all the same
        elif not (name in OUTSIDE and path.is_file()) and not _left_by_download(path, name):
            yield name


def check_extra(folder: Path, manifest: dict[str, Any]) -> list[Finding]:
    """Compare the files that publishing added with those that the manifest says it did."""
    said = manifest.get("publication")
    claimed = said.get("extra") if isinstance(said, dict) else []
    found = [name for name in released_files(folder) if name.startswith(f"{EXTRA}/")]
    if sorted(found) == (sorted(map(str, claimed)) if isinstance(claimed, list) else None):
        names = [name.removeprefix(f"{EXTRA}/") for name in found]
        what = "is no name of a file that publishing adds"
        return [
            Finding(f"{EXTRA}/{name}", what) for name in names if not EXTRA_NAME.fullmatch(name)
        ]
    return [Finding(MANIFEST, f"publication.extra is {claimed}, found {sorted(found)}")]


def check_contents(
    folder: Path,
    base: Path,
    config: dict[str, Any],
    weights: frozenset[str],
    code: Collection[Path] = (),
    *,
    carries_code: bool = False,
    maps: bool = True,
) -> list[Finding]:
    """Compare all that a loader reads beside the weights with what the base gives.

    Args:
        folder: the release.
        base: the base model's folder.
        config: the `config.json` that the base and the plan give.
        weights: names of the files that hold the weights, their index included.
        code: our own modeling files, to which the release's must be equal.
        carries_code: it must have a copy of the base's own code too.
        maps: something is compensated, so that there may be maps.
    """
    found = _check_config(folder / "config.json", config)
    own = {path.name: path for path in code}
    expected = {name: base / name for name in companions(base, code=carries_code)} | own
    for name, ours in sorted(expected.items()):
        path, whose = folder / name, "this program's" if name in own else "the base's"
        if not path.is_file():
            found.append(Finding(name, f"is missing; it must be {whose}"))
        elif not _same_bytes(path, ours):
            found.append(Finding(name, f"differs from {whose}"))
    known = {"config.json", *([MAPS] if maps else []), *expected, *weights}
    for name in sorted(released_files(folder)):
        if name not in known and not (
            PLAIN.fullmatch(name)
            and any(PurePosixPath(f"/{name}").match(f"/{c}") for c in EXPLAINED)
        ):
            found.append(Finding(name, "neither the base nor the pruning explains this file"))
    return found


def _left_by_download(path: Path, name: str) -> bool:
    """Whether a file is one that a download leaves, by its name, kind and size."""
    if not name.startswith(f"{DOWNLOAD}/") or path.is_symlink() or not path.is_file():
        return False
    parts, size = PurePosixPath(name.removeprefix(f"{DOWNLOAD}/")), path.stat().st_size
    if str(parts.parent) == "trees" and parts.suffix == ".json":
        return size <= TREE_BYTES
    listed = str(parts) in OF_DOWNLOAD or (
        parts.parts[0] == "download" and parts.suffix in (".lock", ".metadata")
    )
    return listed and size <= OF_DOWNLOAD_BYTES


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether a file is in its folder, or is one of those that the Hub's cache links to."""
    if not path.is_symlink():
        return True
    target, root = path.resolve(), folder.resolve()
    blobs = root.parent.parent / "blobs"
    return target.is_relative_to(root) or target.parent == blobs


def _same_bytes(one: Path, other: Path) -> bool:
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as first, other.open("rb") as second:
        while chunk := first.read(COMPARED_BYTES):
            if chunk != second.read(COMPARED_BYTES):
                return False
    return True


def _check_config(path: Path, expected: dict[str, Any]) -> list[Finding]:
    try:
        actual = read_json(path)
    except (OSError, ValueError) as error:
        return [Finding("config.json", f"cannot be read ({error})")]
    if not isinstance(actual, dict):
        return [Finding("config.json", "is not a JSON object")]
    return [
        Finding("config.json", f"{key} is {_shown(actual, key)}, expected {_shown(expected, key)}")
        for key in sorted(actual.keys() | expected.keys())
        if _shown(actual, key) != _shown(expected, key)
        and not (key == SIGNED_BY_LIBRARY and all(map(_can_have_signed, (actual, expected))))
    ]


def _can_have_signed(config: dict[str, Any]) -> bool:
    """Whether a config names a version of the library on which this program runs."""
    try:
        return Version(config.get(SIGNED_BY_LIBRARY, "")) >= OLDEST_LIBRARY
    except (InvalidVersion, TypeError):
        return False


def _shown(config: dict[str, Any], key: str) -> str:
    return json.dumps(config[key], sort_keys=True) if key in config else "absent"


def _escapes(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or "\\" in name
