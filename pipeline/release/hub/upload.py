"""Sending a release: what differs from what is there, in one commit, and checked afterwards."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import logging as client_log
from huggingface_hub.utils.sha import git_hash
from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

from pipeline.errors import BrokenError, InputError
from pipeline.progress import Progress
from pipeline.release.hub.destination import KEPT, MAIN, Destination, Remote, files_at, hub
from pipeline.release.hub.errors import publishing_errors
from pipeline.release.publication import File, Publication

SHOWN = 5


@dataclass(frozen=True)
class Changes:
    """What publishing changes there.

    Attributes:
        send: names of the files that are not there as they are here.
        delete: names of the files there that are none of the release.
        size: bytes of the files to send.
    """

    send: list[str]
    delete: list[str]
    size: int

    def __bool__(self) -> bool:
        return bool(self.send or self.delete)


@dataclass(frozen=True)
class Sent:
    """Where the release is.

    Attributes:
        commit: hash of the commit that holds it.
        pull_request: URL of the pull request, if it is one.
    """

    commit: str
    pull_request: str | None


def changes(publication: Publication, remote: Remote) -> Changes:
    """Compare a publication with what is there."""
    send = [
        name
        for name, file in publication.files.items()
        if name not in remote.files or not _same(file, remote.files[name])
    ]
    delete = sorted(remote.files.keys() - publication.files.keys() - {KEPT})
    return Changes(send, delete, sum(publication.files[name].size for name in send))


def send(
    publication: Publication,
    destination: Destination,
    remote: Remote,
    message: str,
    progress: Progress,
) -> Sent:
    """Send what differs in one commit, and check what is there then.

    Files that the Hub has from a call that did not end are not sent again.

    Args:
        publication: what is published.
        destination: where it goes.
        remote: what was found there.
        message: of the commit.
        progress: told about the upload.

    Raises:
        InputError: this token has no right to do it.
        BrokenError: the network or the Hub failed, or the Hub holds something else than was sent.
    """
    repository = destination.repository
    with publishing_errors(repository), _client_speaks_only_to_terminals(progress):
        head = _prepared(destination, remote)
        wanted = changes(publication, remote)
        sent = Sent(head, None)
        if wanted:
            answer = hub().create_commit(
                repository,
                [
                    *(_addition(name, publication.files[name]) for name in wanted.send),
                    *(CommitOperationDelete(name, is_folder=False) for name in wanted.delete),
                ],
                commit_message=message,
                revision=destination.revision,
                create_pr=destination.pull_request,
                parent_commit=head,
            )
            sent = Sent(answer.oid, answer.pr_url)
    _check(publication, repository, sent.commit)
    return sent


def give_tag(destination: Destination, commit: str) -> None:
    """Tag a commit; a tag that stands for it already stays.

    Raises:
        BrokenError: the tag stands for something else, or the Hub cannot be reached.
    """
    assert destination.tag is not None
    with publishing_errors(destination.repository):
        hub().create_tag(destination.repository, tag=destination.tag, revision=commit)


def check_tag(destination: Destination, remote: Remote, wanted: Changes) -> None:
    """Refuse a tag that stands for something else than what is published.

    Raises:
        InputError: it does.
    """
    if remote.tagged is not None and (wanted or remote.tagged != remote.head):
        raise InputError(
            f"the tag {destination.tag!r} is there, for commit {remote.tagged[:12]}",
            where=f"{destination.repository}: --tag",
            remedy="choose another name: who uses a tag relies on what it stands for",
        )


def _prepared(destination: Destination, remote: Remote) -> str:
    """Make repository and branch if they are not there, and return the commit to follow."""
    head, repository = remote.head, destination.repository
    if not remote.exists:
        hub().create_repo(repository, private=not destination.public, exist_ok=True)
        head = hub().model_info(repository).sha
    if destination.revision != MAIN and (remote.new_branch or not remote.exists):
        hub().create_branch(repository, branch=destination.revision, revision=head, exist_ok=True)
    assert head is not None
    return head


def _addition(name: str, file: File) -> CommitOperationAdd:
    content = file.content if isinstance(file.content, bytes) else str(file.content)
    addition = CommitOperationAdd(name, content)
    if addition.upload_info.sha256.hex() != file.sha256:
        raise BrokenError(
            "this file was changed while it was published; nothing was committed",
            where=str(file.content) if not isinstance(file.content, bytes) else name,
            remedy="make the release again, or undo the change",
        )
    return addition


def _check(publication: Publication, repository: str, commit: str) -> None:
    there = files_at(repository, commit)
    wrong = [
        f"{name} is {'another file' if name in there else 'missing'}"
        for name, file in publication.files.items()
        if name not in there or not _same(file, there[name])
    ]
    extra = there.keys() - publication.files.keys() - {KEPT}
    wrong += [f"{name} is not of the release" for name in sorted(extra)]
    if wrong:
        raise BrokenError(
            f"the Hub does not hold what was sent: {', '.join(wrong[:SHOWN])}",
            where=f"{repository}@{commit}",
            remedy="do not use this commit; run the same command again, and tell the Hub if it "
            "stays so",
        )


def _same(file: File, there: RepoFile) -> bool:
    """Whether the Hub's hash of a file is that of ours: of large ones SHA-256, else git's."""
    if there.lfs is not None:
        return there.lfs.sha256 == file.sha256
    return there.size == file.size and there.blob_id == git_hash(file.read())


@contextmanager
def _client_speaks_only_to_terminals(progress: Progress) -> Iterator[None]:
    if progress.style == "terminal":
        yield
        return
    earlier = client_log.get_verbosity()
    client_log.set_verbosity(logging.ERROR)
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
        client_log.set_verbosity(earlier)
