"""Templates of this package: an unknown variable is an error, and blocks leave no empty lines."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined


def environment(package: str, folder: str = "templates", *, html: bool = False) -> Environment:
    """Where a package's templates are loaded and rendered.

    Args:
        package: full name of the package.
        folder: its folder that holds them.
        html: every text that is filled in is escaped.
    """
    return Environment(
        loader=PackageLoader(package, folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=html,
    )
