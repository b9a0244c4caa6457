"""Publishing: a release that was proven, judged and verified goes to the Hub, and nothing else.

The base is at hand and the release is verified against it, whatever made it. What is then sent is
what the manifest lists, with the manifest and its signature, in one commit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from pipeline.cache import Cache
from pipeline.errors import InputError
from pipeline.export.manifest import NAME as MANIFEST
from pipeline.progress import Progress
from pipeline.recipe.publishing import Publish
from pipeline.release.checks.claims import check_one_voice
from pipeline.release.hub.destination import Destination, Remote, check_content, look
from pipeline.release.hub.upload import Changes, changes, check_tag, give_tag, send
from pipeline.release.publication import Publication, added_files, publication_of
from pipeline.verify import Release, verify


@dataclass(frozen=True)
class Wish:
    """What a publisher asks for.

    Attributes:
        destination: where the release goes.
        even_if_failed: publish a release that did not pass its gates; the card says so.
        extra: files to add.
        recompute: verify the compensation by scoring the texts again.
    """

    destination: Destination
    even_if_failed: bool = False
    extra: tuple[Path, ...] = ()
    recompute: bool = False


@dataclass(frozen=True)
class Offer:
    """What would be sent, for the publisher to agree to."""

    publication: Publication
    wish: Wish
    remote: Remote
    changes: Changes

    def as_dict(self) -> dict[str, Any]:
        """For `--json` and for the terminal."""
        manifest, destination = self.publication.manifest, self.wish.destination
        return {
            "repository": destination.repository,
            "revision": destination.revision,
            "pull_request": destination.pull_request,
            "tag": destination.tag,
            "private": self.remote.private if self.remote.exists else not destination.public,
            "made": not self.remote.exists,
            "verdict": manifest["verdict"],
            "even_if_failed": self.wish.even_if_failed and manifest["verdict"] != "PASS",
            "files": len(self.publication.files),
            "bytes": self.publication.size,
            "send": {name: self.publication.files[name].size for name in self.changes.send},
            "send_bytes": self.changes.size,
            "delete": self.changes.delete,
            "notes": list(_paths_of_this_machine(manifest)),
            "manifest_sha256": self.publication.files[MANIFEST].sha256,
        }


Agree = Callable[[Offer], None]


def wish_of(section: Publish, folder: Path) -> Wish:
    """What a recipe's `publish` section asks for; its paths start at the recipe's folder."""
    destination = Destination(
        repository=section.to,
        public=section.public,
        revision=section.revision,
        pull_request=section.pull_request,
        tag=section.tag,
        message=section.message,
    )
    extra = tuple(folder / Path(name).expanduser() for name in section.extra)
    return Wish(destination, section.even_if_failed, extra)


def check_reachable(wish: Wish, name: str) -> None:
    """Fail now and not after a run of hours, if the release could not be published.

    Raises:
        InputError: there is no token, no right, no such organisation, other content is there, or a
            file cannot be added.
        BrokenError: the Hub cannot be reached.
    """
    added_files(wish.extra)
    check_content(wish.destination, look(wish.destination), name)


def publish(
    release: Release,
    wish: Wish,
    *,
    agree: Agree,
    dry_run: bool = False,
    cache: Cache,
    progress: Progress,
) -> dict[str, Any]:
    """Check a release, and publish it; JSON-able result.

    Args:
        release: the release, with the publisher's base.
        wish: where it goes, and how.
        agree: shown what would be sent; raises if that is not to be.
        dry_run: send nothing.
        cache: keeps scoring.
        progress: where to report.

    Raises:
        InputError: the release has no proof, did not pass its gates or is not its base minus its
            units; or the Hub does not let this token do it.
        BrokenError: the network or the Hub failed, or the Hub holds something else than was sent.
    """
    destination = wish.destination
    _check_proof_and_verdict(release, wish.even_if_failed)
    with progress.stage("Hub"):
        remote = look(destination)
        check_content(destination, remote, str(release.manifest.get("name")))
    _check_verified(release, wish.recompute, cache, progress)
    publication = publication_of(
        release.folder,
        release.manifest,
        even_if_failed=wish.even_if_failed and release.manifest["verdict"] != "PASS",
        extra=wish.extra,
    )
    wanted = changes(publication, remote)
    check_tag(destination, remote, wanted)
    offer = Offer(publication, wish, remote, wanted)
    result = offer.as_dict()
    if dry_run:
        return {**result, "published": False, "commit": None, "pull_request_url": None}
    if wanted:
        agree(offer)
    with progress.stage("Upload"):
        sent = send(
            publication, destination, remote, destination.message or _message(offer), progress
        )
        if destination.tag is not None and remote.tagged is None:
            give_tag(destination, sent.commit)
    return {
        **result,
        "published": True,
        "commit": sent.commit,
        "pull_request_url": sent.pull_request,
    }


def _check_proof_and_verdict(release: Release, even_if_failed: bool) -> None:
    manifest, where = release.manifest, str(release.folder)
    proof = manifest.get("proof")
    said = proof if isinstance(proof, dict) else {}
    difference, tolerance = _figure(said.get("max_difference")), _figure(said.get("tolerance"))
    if difference is None or tolerance is None:
        raise InputError(
            "this release has no proof that it computes what its masked base computes",
            where=where,
            remedy="make it with `unlearn run`, which proves it",
        )
    if difference > tolerance:
        raise InputError(
            f"its proof does not hold: logits differ by {difference:g}, more than {tolerance:g}",
            where=where,
            remedy="make it again; a release that fails its proof is not published",
        )
    verdict = manifest.get("verdict")
    if verdict != "PASS" and not even_if_failed:
        why = "its recipe has no gates" if verdict == "UNJUDGED" else "it did not pass its gates"
        raise InputError(
            f"its verdict is {verdict}: {why}",
            where=where,
            remedy="publish one that passed, or add --even-if-failed, which the card will say",
        )


def _figure(value: Any) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _check_verified(release: Release, recompute: bool, cache: Cache, progress: Progress) -> None:
    where = str(release.folder)
    found = verify(release, recompute=recompute, cache=cache, progress=progress)
    otherwise, _ = check_one_voice(release.folder, release.manifest)
    wrong = [*found.findings, *otherwise]
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise InputError(
            f"it is not what it says: {wrong[0].where}: {wrong[0].what}{more}",
            where=where,
            remedy=f"`unlearn verify {where}` names everything; if the base is another one, give "
            "it with --base",
        )
    if found.decision != "VERIFIED":
        raise InputError(
            f"it cannot be verified: {found.sentence}",
            where=where,
            remedy="make it with compensate.publish_maps: true, or add --recompute, which scores "
            "your own recipe's texts again",
        )


def _message(offer: Offer) -> str:
    manifest = offer.publication.manifest
    return f"{manifest['name']} from {manifest['base']['name']}: {manifest['verdict']}"


def _paths_of_this_machine(manifest: dict[str, Any]) -> Sequence[str]:
    """What a reader of the manifest will learn about the publisher's folders."""
    origins = [manifest["base"]["origin"], *(corpus["origin"] for corpus in manifest["corpora"])]
    paths = dict.fromkeys(
        origin["path"] for origin in origins if PurePath(str(origin.get("path", ""))).is_absolute()
    )
    return [f"the manifest names {path} of the machine that made it" for path in paths]
