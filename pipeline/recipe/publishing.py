"""Where a result goes."""

from __future__ import annotations

from pydantic import Field

from pipeline.recipe.fields import Section, Text


class Publish(Section):
    """Publishing on the Hugging Face Hub, when a run has passed its gates."""

    to: Text = Field(
        pattern=r"^[^/\s]+/[^/\s]+$", description="Repository, as `organisation/name`."
    )
    public: bool = Field(False, description="Let everybody see it; it is private otherwise.")
    revision: Text = Field("main", description="Branch, made from `main` if there is none.")
    pull_request: bool = Field(
        False, description="Open a pull request, and leave the branch as it is."
    )
    tag: Text | None = Field(None, description="Tag that the commit is given.")
    message: Text | None = Field(
        None, description="Message of the commit; default: recipe, base and verdict."
    )
    extra: tuple[Text, ...] = Field(
        (),
        description="Images and texts to add in the folder `extra/`, relative to the recipe's "
        "folder.",
    )
    even_if_failed: bool = Field(
        False,
        description="Publish what did not pass its gates too; card and manifest then say so.",
    )
