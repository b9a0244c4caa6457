"""A released checkpoint, and a model as it is named on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import InputError
from pipeline.progress import Progress
from pipeline.recipe.texts import HubSource, PackageSource, PathSource
from pipeline.sources.hub_models import download

PACKAGE = "package:"
FORMS = "a folder, `organisation/name@revision` of the Hub, a .gguf file, or `package:name/file`"


def fetch_release(reference: str, progress: Progress, only: Sequence[str] = ()) -> Path:
    """Return the folder of a released checkpoint, downloaded whole if it is on the Hub.

    Args:
        reference: a folder, or `organisation/name` or `organisation/name@revision` of the Hub.
        progress: told about a download.
        only: patterns of the files that are needed; default: all of them.

    Raises:
        InputError: there is no such folder or repository.
        BrokenError: the Hub cannot be reached.
    """
    source = model_source(reference)
    if isinstance(source, HubSource):
        return download(source, progress, whole=True, only=only)[0]
    if isinstance(source, PathSource) and Path(source.path).is_dir():
        return Path(source.path)
    raise InputError(
        "there is no such checkpoint folder",
        where=reference,
        remedy="give a folder such as out/no-code, or organisation/name@revision of the Hub",
    )


def short_name(reference: str) -> str:
    """What files that are made of a checkpoint are named after.

    Raises:
        InputError: there is no such checkpoint.
    """
    source = model_source(reference)
    if isinstance(source, HubSource):
        return source.hub.split("/")[-1]
    return Path(reference).resolve().name


def model_source(reference: str) -> HubSource | PathSource | PackageSource:
    """Read a model's name as people write it on a command line: see `FORMS`.

    Raises:
        InputError: it is none of them.
    """
    if reference.startswith(PACKAGE):
        package, _, file = reference.removeprefix(PACKAGE).partition("/")
        if not (package and file):
            raise InputError(
                "a file in a package is written package:name/path/of/file", where=reference
            )
        return PackageSource(package=package, file=file)
    path = Path(reference).expanduser()
    if path.exists():
        return PathSource(path=str(path.resolve()))
    name, _, revision = reference.partition("@")
    parts = name.split("/")
    if len(parts) == 2 and all(parts) and path.parent.is_dir():
        raise InputError(
            f"there is no {parts[1]!r} in the folder {parts[0]!r}",
            where=reference,
            remedy="make it with `unlearn run`, or give " + FORMS,
        )
    if len(parts) == 2 and all(parts) and "." not in parts[0] and path.suffix != ".gguf":
        return HubSource(hub=name, revision=revision or "main")
    raise InputError("there is no such model", where=reference, remedy=f"give {FORMS}")
