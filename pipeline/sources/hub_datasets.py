"""Data sets of the Hugging Face Hub, streamed row by row."""

from __future__ import annotations

import re
from collections.abc import Iterator

from huggingface_hub import HfApi

from pipeline.errors import InputError
from pipeline.recipe.texts import DatasetSource
from pipeline.sources.hub import hub_errors
from pipeline.sources.rows import Row

KIND = "data set"


def commit_of(source: DatasetSource) -> str:
    """The commit that the source's revision stands for now; a commit is not looked up.

    Raises:
        InputError: there is no such data set or revision.
        BrokenError: the Hub cannot be reached.
    """
    if re.fullmatch("[0-9a-f]{40}", source.revision):
        return source.revision
    with hub_errors(source.hub, source.revision, KIND):
        # Asked first because the data sets library would retry for half a minute.
        return str(HfApi().dataset_info(source.hub, revision=source.revision).sha)


def stream_rows(source: DatasetSource) -> Iterator[Row]:
    """Yield the rows of a data set without downloading all of it.

    Raises:
        InputError: there is no such data set, configuration or split.
        BrokenError: the Hub cannot be reached.
    """
    commit = commit_of(source)
    with hub_errors(source.hub, source.revision, KIND):
        import datasets  # takes seconds to import, and most recipes do not need it

        try:
            rows = datasets.load_dataset(
                source.hub, source.config, split=source.split, revision=commit, streaming=True
            )
        except (ValueError, FileNotFoundError, datasets.exceptions.DatasetsError) as error:
            raise InputError(
                str(error).splitlines()[0],
                where=f"{KIND} {source.hub}",
                remedy="check `config` and `split` against the data set's page",
            ) from error
        for row in rows:
            yield dict(row)
