"""What can go wrong when something is written to the Hub, in words that help."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from pipeline.errors import BrokenError, InputError, UnlearnError
from pipeline.sources.hub import first_line, is_network

STORAGE = re.compile("storage|quota", re.IGNORECASE)
TOKEN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


@contextmanager
def publishing_errors(repository: str) -> Iterator[None]:
    """Turn the Hub's errors inside the block into errors for the reader.

    Raises:
        InputError: there is no token, it may not write there, or the card is refused.
        BrokenError: the Hub cannot be reached, is full, or something else was committed meanwhile.
    """
    try:
        yield
    except UnlearnError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise explain(error, repository) from error
    except Exception as error:
        # The Hub's client does not wrap what its HTTP library raises, whichever that is.
        if not is_network(error):
            raise
        raise explain(error, repository) from error


def explain(error: BaseException, repository: str) -> UnlearnError:
    """The error for the reader that stands for one of the Hub's."""
    cause = _cause(error)
    if isinstance(cause, LocalTokenNotFoundError):
        return no_token(repository)
    if isinstance(cause, HFValidationError):
        return InputError(
            "this is not a valid name on the Hub",
            where=repository,
            remedy="write it as organisation/name",
        )
    said = _said(cause)
    if "Invalid metadata" in str(error):
        return InputError(
            f"the Hub does not accept the model card's metadata: {' '.join(str(error).split())}",
            where=f"{repository}: README.md",
            remedy="correct the recipe's language or licence, and make the release again",
        )
    if _is_about_storage(cause):
        return BrokenError(
            f"the Hub has no room for it: {said}",
            where=repository,
            remedy="free some storage of this account or get more, then run the same command: what "
            "was sent is not sent again",
        )
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    if status == 401 and not isinstance(cause, RepositoryNotFoundError):
        return InputError("the Hub does not accept this token", where=repository, remedy=TOKEN)
    if status == 403:
        return InputError(
            f"this token has no right to write there ({said})",
            where=repository,
            remedy="use a token with write access (HF_TOKEN), ask the organisation for the right, "
            "or propose it with --pull-request",
        )
    if status in (409, 412):
        return BrokenError(
            f"something else was changed there meanwhile, and nothing was committed ({said})",
            where=repository,
            remedy="look at it, then run the same command, which starts from what is there",
        )
    if isinstance(cause, RepositoryNotFoundError) or status == 404:
        return InputError(
            f"the Hub has no such place, or hides it from this token ({said})",
            where=repository,
            remedy="check the name (organisation/name) and the token's rights",
        )
    offline = isinstance(cause, OfflineModeIsEnabled)
    why = "HF_HUB_OFFLINE is set" if offline else said
    return BrokenError(
        f"the Hub did not take it: {why}",
        where=repository,
        remedy=("unset HF_HUB_OFFLINE, and " if offline else "")
        + "run the same command again: what was sent is not sent again",
    )


def no_token(repository: str) -> InputError:
    """The error for who is not logged in."""
    return InputError("there is no token for the Hub", where=repository, remedy=TOKEN)


def _cause(error: BaseException) -> BaseException:
    """The error of the Hub or network inside one that the client wraps around it."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, HfHubHTTPError) or is_network(inner):
            return inner
        inner = inner.__cause__
    return error


def _is_about_storage(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):  # its own message holds the URL, which may say "storage"
        return STORAGE.search(error.server_message or "") is not None
    return "LFS batch API" in str(error) and STORAGE.search(str(error)) is not None


def _said(error: BaseException) -> str:
    if isinstance(error, HfHubHTTPError) and error.server_message:
        return " ".join(error.server_message.split())
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join(line.rstrip(":") for line in lines[:2]) or first_line(error)
