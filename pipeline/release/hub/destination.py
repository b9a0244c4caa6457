"""Where a release is published, and what is there already."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from pipeline.cache import read_json
from pipeline.errors import InputError
from pipeline.export.manifest import NAME as MANIFEST
from pipeline.release.hub.errors import no_token, publishing_errors
from pipeline.sources.hub import hub_errors

MAIN = "main"
COMMIT = re.compile("[0-9a-f]{40}")
KEPT = ".gitattributes"  # the Hub's own, in every repository
EMPTY = {KEPT, "README.md"}  # what a repository holds that was made on the web page


@dataclass(frozen=True)
class Destination:
    """Where a release goes, as its publisher says it.

    Attributes:
        repository: `organisation/name`.
        public: whether everybody may see it.
        revision: branch; made from `main` if there is none of this name.
        pull_request: propose it, and leave the branch as it is.
        tag: given to the commit.
        message: of the commit; None for one that says what the release is.
        replace: whatever is there may be replaced.
    """

    repository: str
    public: bool = False
    revision: str = MAIN
    pull_request: bool = False
    tag: str | None = None
    message: str | None = None
    replace: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            InputError: the options contradict each other.
        """
        if self.pull_request and self.revision != MAIN:
            raise InputError(
                f"a pull request is made against {MAIN}, not against {self.revision!r}",
                where="--pull-request and --revision",
                remedy="give one of them",
            )
        if self.pull_request and self.tag is not None:
            raise InputError(
                "a tag stands for what is published, and a pull request is not yet",
                where="--pull-request and --tag",
                remedy="give one of them; tag the commit when it is merged",
            )
        if COMMIT.fullmatch(self.revision):
            raise InputError(
                "a commit cannot be published to", where="--revision", remedy="name a branch"
            )


@dataclass(frozen=True)
class Remote:
    """What is there.

    Attributes:
        exists: whether the repository does.
        private: whether it is private; meaningless if it does not exist.
        head: commit that the release will follow; None if there is none.
        new_branch: the branch must be made first.
        files: every file at that commit, by name.
        tagged: commit of the wanted tag, if it is there.
        release: manifest of the release that is there, if it is one.
    """

    exists: bool
    private: bool = True
    head: str | None = None
    new_branch: bool = False
    files: dict[str, RepoFile] = field(default_factory=dict)
    tagged: str | None = None
    release: dict[str, Any] | None = None


def hub() -> HfApi:
    """The Hub's client, which finds the token itself and will not do without one."""
    return HfApi(token=True)


def look(destination: Destination) -> Remote:
    """Find out who we are and what is there; nothing is changed.

    Raises:
        InputError: there is no token, it cannot write there, there is no such organisation, the
            name is that of a tag, or visibility or tag are not as asked.
        BrokenError: the Hub cannot be reached.
    """
    repository = destination.repository
    if get_token() is None:
        raise no_token(repository)
    with publishing_errors(repository):
        _check_account(repository)
        try:
            found = hub().model_info(repository)
        except RepositoryNotFoundError:
            return Remote(exists=False)
        refs = hub().list_repo_refs(repository)
    branches = {ref.name: ref.target_commit for ref in refs.branches}
    tags = {ref.name: ref.target_commit for ref in refs.tags}
    if destination.revision in tags:
        raise InputError(
            f"{destination.revision!r} is a tag there, and stays what it is",
            where="--revision",
            remedy="name a branch",
        )
    private = bool(found.private)
    _check_visibility(destination, private)
    head = branches.get(destination.revision) or found.sha
    assert head is not None
    files = files_at(repository, head)
    release = _manifest_at(repository, head) if MANIFEST in files else None
    tagged = tags.get(destination.tag) if destination.tag else None
    new = destination.revision not in branches
    return Remote(True, private, head, new, files, tagged, release)


def files_at(repository: str, commit: str) -> dict[str, RepoFile]:
    """Every file of a commit, by name.

    Raises:
        InputError: there is no such commit.
        BrokenError: the Hub cannot be reached.
    """
    with publishing_errors(repository):
        entries = list(hub().list_repo_tree(repository, recursive=True, revision=commit))
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def check_content(destination: Destination, remote: Remote, name: str) -> None:
    """Refuse to replace what is not an earlier release of the same recipe.

    Raises:
        InputError: the repository holds something else.
    """
    if destination.replace or not remote.exists or remote.files.keys() <= EMPTY:
        return
    if remote.release is None:
        others = ", ".join(sorted(remote.files.keys() - EMPTY)[:5])
        what = f"it holds something that `unlearn` did not publish ({others})"
    elif remote.release.get("name") != name:
        what = f"it holds a release of recipe {remote.release.get('name')!r}, and this is {name!r}"
    else:
        return
    raise InputError(
        f"{what}; nothing was changed",
        where=destination.repository,
        remedy="choose another name with --to, or replace all of it with --force",
    )


def _check_account(repository: str) -> None:
    account: dict[str, Any] = hub().whoami()
    token = account.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise InputError(
            f"the token of {account.get('name')!r} may only read",
            where=repository,
            remedy="make one that may write, and set HF_TOKEN to it or `hf auth login`",
        )
    namespace, slash, _ = repository.partition("/")
    if not slash:
        raise InputError(
            "this is not a valid name on the Hub",
            where=repository,
            remedy=f"write it as organisation/name, such as {account.get('name')}/{repository}",
        )
    members = {account.get("name"), *(each.get("name") for each in account.get("orgs", []))}
    if namespace in members:
        return
    try:  # a token may hide its organisations: whether it may write there the Hub says then
        hub().get_organization_overview(namespace)
    except HfHubHTTPError as error:
        if error.response.status_code != 404:
            raise
        raise InputError(
            f"there is no organisation {namespace!r} on the Hub, and {account.get('name')!r} is "
            "not called so",
            where=repository,
            remedy=f"choose {' or '.join(sorted(filter(None, members)))}, or make the organisation "
            "on its web page",
        ) from error


def _check_visibility(destination: Destination, private: bool) -> None:
    if private and destination.public:
        raise InputError(
            "this repository is private, and publishing does not change that",
            where=destination.repository,
            remedy="leave --public out; change the visibility in the repository's settings",
        )
    if not private and not destination.public:
        raise InputError(
            "everybody can see this repository",
            where=destination.repository,
            remedy="add --public if that is meant, or choose another name",
        )


def _manifest_at(repository: str, commit: str) -> dict[str, Any] | None:
    with hub_errors(repository, commit):
        path = hub().hf_hub_download(repository, MANIFEST, revision=commit)
    try:
        content = read_json(Path(path))
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
