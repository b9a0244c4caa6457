"""What can go wrong with the Hugging Face Hub, in words that help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from pipeline.cache import is_full
from pipeline.errors import BrokenError, InputError, UnlearnError


@contextmanager
def hub_errors(repository: str, revision: str, kind: str = "model") -> Iterator[None]:
    """Turn the Hub's errors inside the block into errors for the reader.

    Args:
        repository: `organisation/name`.
        revision: branch, tag or commit that was asked for.
        kind: "model" or "data set".

    Raises:
        InputError: no such repository or revision, or it is gated.
        BrokenError: the Hub cannot be reached.
    """
    try:
        yield
    except (HFValidationError, HfHubHTTPError, EntryNotFoundError, OSError) as error:
        raise explain(error, repository, revision, kind) from error
    except Exception as error:
        # The Hub's client does not wrap what its HTTP library raises, whichever that is.
        if not is_network(error):
            raise
        raise explain(error, repository, revision, kind) from error


def explain(error: BaseException, repository: str, revision: str, kind: str) -> UnlearnError:
    """The error for the reader that stands for one of the Hub's."""
    where = f"{kind} {repository}"
    if is_full(error):
        return BrokenError(
            f"no space left on the disk for this {kind}",
            where=where,
            remedy="free some space, or set HF_HOME to a folder on a larger disk",
        )
    if isinstance(error, GatedRepoError):
        return InputError(
            f"access to this {kind} must be granted on the Hub first",
            where=where,
            remedy="ask for access on its page, then set HF_TOKEN to a token of that account",
        )
    if isinstance(error, RevisionNotFoundError):
        return InputError(f"it has no revision {revision!r}", where=where)
    if isinstance(error, RepositoryNotFoundError):
        return InputError(
            f"there is no such {kind} on the Hub, or it is private",
            where=where,
            remedy="check the name (organisation/name); for a private one set HF_TOKEN",
        )
    if isinstance(error, HFValidationError):
        return InputError(
            "this is not a valid name on the Hub",
            where=where,
            remedy="write it as organisation/name, or use `path` for something on this machine",
        )
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return InputError(f"a file is missing there: {first_line(error)}", where=where)
    offline = isinstance(error, OfflineModeIsEnabled)
    why = "HF_HUB_OFFLINE is set" if offline else first_line(error)
    return BrokenError(
        f"the Hub cannot be reached, and this {kind} is not in the local cache ({why})",
        where=where,
        remedy=(
            "unset HF_HUB_OFFLINE, " if offline else "check the network, set HF_TOKEN if needed, "
        )
        + "or give a local folder with `path`",
    )


def is_network(error: BaseException) -> bool:
    """Whether an error is one of the HTTP library that the Hub's client uses."""
    return any(
        kind.__module__.split(".")[0] in {"httpx", "httpx2", "httpcore", "aiohttp", "requests"}
        for kind in type(error).__mro__
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
