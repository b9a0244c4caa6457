"""Models of the Hugging Face Hub: what is there, and the download of what is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

from pipeline.cache import read_json
from pipeline.errors import BrokenError, InputError
from pipeline.progress import Progress
from pipeline.recipe.texts import HubSource
from pipeline.sources.hub import hub_errors
from pipeline.sources.licences import licence_of_card
from pipeline.sources.model_folder import INDEX, SMALL_FILES, pickled_error

FILES = ("*.safetensors", *SMALL_FILES, "*.py")  # fetched is not run
PICKLED_FILES = "pytorch_model*.bin"
# Other formats and original copies of the same weights.
NOT_FILES = ("*/*", "consolidated*.safetensors")


@dataclass(frozen=True)
class HubModel:
    """What is known of a Hub model before it is downloaded.

    Attributes:
        size_bytes: size of its safetensors; None while the Hub is out of reach.
        at_hand: whether its weights are in the local cache.
        config: its config.json.
        licence: the licence that its card states.
    """

    size_bytes: int | None
    at_hand: bool
    config: dict[str, Any]
    licence: str | None


def download(
    source: HubSource,
    progress: Progress,
    *,
    whole: bool = False,
    pickled: bool = False,
    only: Sequence[str] = (),
) -> tuple[Path, dict[str, str]]:
    """Download a model, and say for the manifest where it came from.

    Args:
        source: repository and revision.
        progress: told about the download.
        whole: every file of the repository, and not only those that a model needs.
        pickled: weights may be pickled; they are fetched only if there are no others.
        only: the files of these patterns.

    Raises:
        InputError: no such repository or revision, access is not granted, or its weights are
            pickled and may not be.
        BrokenError: the Hub cannot be reached and nothing was downloaded before.
    """
    with hub_errors(source.hub, source.revision):
        commit, unreachable = _commit(source)
        wanted = list(only) if only else None if whole else list(FILES)
        if wanted and not only and commit is not None and _only_pickled(source, commit, pickled):
            wanted.append(PICKLED_FILES)
        if commit is not None:
            progress.say(f"Fetching {source.hub} at {commit[:12]} (files at hand are not repeated)")
        if progress.style != "terminal":
            disable_progress_bars()
        try:
            path = Path(
                snapshot_download(
                    source.hub,
                    revision=commit or source.revision,
                    allow_patterns=wanted,
                    ignore_patterns=None if whole or only else list(NOT_FILES),
                    local_files_only=commit is None,
                )
            )
        except LocalEntryNotFoundError as error:
            raise (unreachable or error) from error
        finally:
            enable_progress_bars()
    origin = {
        "kind": "hub",
        "repository": source.hub,
        "revision": source.revision,
        "commit": commit or path.name,  # snapshots are kept in folders named after commits
    }
    return path, origin


def look_up(source: HubSource, *, pickled: bool = False) -> HubModel:
    """Find out about a model; only its config.json is downloaded.

    Args:
        source: repository and revision.
        pickled: weights may be pickled.

    Raises:
        InputError: no such repository or revision, or it has no safetensors.
        BrokenError: the Hub cannot be reached and nothing was downloaded before.
    """
    with hub_errors(source.hub, source.revision):
        commit, unreachable = _commit(source)
        revision = commit or source.revision
        try:
            config = hf_hub_download(
                source.hub, "config.json", revision=revision, local_files_only=commit is None
            )
        except LocalEntryNotFoundError as error:
            raise (unreachable or error) from error
        size, licence = None, None
        if commit is not None:
            ending = ".bin" if _only_pickled(source, commit, pickled) else ".safetensors"
            size, licence = _size_and_licence(source.hub, commit, ending)
    at_hand = any(
        isinstance(try_to_load_from_cache(source.hub, name, revision=revision), str)
        for name in ("model.safetensors", INDEX)
    )
    return HubModel(size, at_hand, read_json(Path(config)), licence)


def _commit(source: HubSource) -> tuple[str | None, BrokenError | None]:
    """The commit that the revision stands for now, or why the Hub is out of reach.

    Asked first because a download would retry for half a minute before it gives up.
    """
    try:
        with hub_errors(source.hub, source.revision):
            return HfApi().model_info(source.hub, revision=source.revision).sha, None
    except BrokenError as error:
        return None, error  # an earlier download may do; if there is none, this is why


def _only_pickled(source: HubSource, commit: str, allowed: bool) -> bool:
    """Whether a repository's weights are pickled and nothing else."""
    siblings = HfApi().model_info(source.hub, revision=commit).siblings or []
    names = [file.rfilename for file in siblings if "/" not in file.rfilename]
    if any(name.endswith(".safetensors") for name in names):
        return False
    if not any(fnmatch(name, PICKLED_FILES) for name in names):
        return False
    if not allowed:
        raise pickled_error(f"model {source.hub}")
    return True


def _size_and_licence(repository: str, commit: str, ending: str) -> tuple[int, str | None]:
    info = HfApi().model_info(repository, revision=commit, files_metadata=True)
    size = sum(
        file.size or 0
        for file in info.siblings or []
        if file.rfilename.endswith(ending) and "/" not in file.rfilename
    )
    if not size:
        raise InputError(
            "it has no safetensors weights",
            where=f"model {repository}",
            remedy="choose a revision that has them, or convert it to a local folder with "
            "save_pretrained()",
        )
    card: Any = info.card_data
    return size, licence_of_card(card.to_dict() if card else None)
