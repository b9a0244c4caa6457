"""The recipe: one YAML file that says what is forgotten, what is kept, and how both are judged.

This package is the schema and nothing else: every field is described, and unknown keys are refused.
`pipeline.recipe_file` reads the file and explains what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from pipeline.recipe.fields import Name, Section, Side, Text
from pipeline.recipe.judging import Control, CurveSettings, Evaluate, Gate, Statistics
from pipeline.recipe.publishing import Publish
from pipeline.recipe.selection import Compensate, Scoring, Select
from pipeline.recipe.texts import Corpus, Model


class Recipe(Section):
    """What is forgotten, what is kept, what is cut, and how the result is judged."""

    name: Name = Field(description="Name of the recipe; the output folder is named after it.")
    description: Text = Field(description="What is removed and why, for the model card.")
    extends: Text | None = Field(
        None,
        description="Recipe from which this one starts, by name or path: sections merge, corpora "
        "by `name` and tasks by `task` (`remove: true` drops one), other lists are replaced.",
    )
    language: Text = Field("en", description="Language of the retained text, for the model card.")
    seed: int = Field(0, ge=0, strict=True, description="Seed of everything that is random.")
    model: Model = Field(description="The base model.")
    forget: tuple[Corpus, ...] = Field(min_length=1, description="Text that shows what to forget.")
    retain: tuple[Corpus, ...] = Field(min_length=1, description="Text that shows what to keep.")
    scoring: Scoring = Field(default_factory=Scoring, description="How units are measured.")
    select: Select = Field(description="Which units are removed.")
    compensate: Compensate = Field(
        default_factory=lambda: Compensate(), description="How kept units stand in for removed."
    )
    evaluate: Evaluate = Field(
        default_factory=lambda: Evaluate(), description="How base and pruned are measured."
    )
    control: Control | None = Field(
        None, description="A cut of the same shape to compare with; it costs another evaluation."
    )
    curve: CurveSettings | None = Field(
        None,
        description="Draw forgetting against its cost, for card and report; each point costs a "
        "pass over the judged texts.",
    )
    gates: tuple[Gate, ...] = Field((), description="Conditions that decide the verdict.")
    statistics: Statistics = Field(
        default_factory=lambda: Statistics(), description="How sure the gates must be."
    )
    publish: Publish | None = Field(
        None, description="Where the result is published; left out, it stays on this machine."
    )

    def what_makes_the_result(self) -> dict[str, Any]:
        """All but where it is published and what was extended, as JSON: they change nothing."""
        return self.model_dump(mode="json", exclude={"publish", "extends"})

    @property
    def corpora(self) -> tuple[tuple[Side, Corpus], ...]:
        """Every corpus with its side, forget first."""
        return (
            *(("forget", corpus) for corpus in self.forget),
            *(("retain", corpus) for corpus in self.retain),
        )

    @property
    def evaluated(self) -> dict[str, Side]:
        """Names of all evaluations of this recipe, with their sides."""
        names: dict[str, Side] = {task.task: task.side for task in self.evaluate.tasks}
        for side, corpus in self.corpora:
            if corpus.use != "scored":
                names[next_token_task(corpus.name)] = side
        return names

    @model_validator(mode="after")
    def _is_consistent(self) -> Recipe:
        if problems := list(self._inconsistencies()):
            summary = "; ".join(text for _, text, _, _ in problems)
            # pydantic knows one error a validator; `recipe_errors` shows each with its line
            raise PydanticCustomError(
                "inconsistent", "{summary}", {"summary": summary, "problems": problems}
            )
        return self

    def _inconsistencies(self) -> Iterator[tuple[tuple[str | int, ...], str, str, list[str]]]:
        """Yield path, what is wrong, the word that is unknown, and the words that are known."""
        seen: set[str] = set()
        for side in ("forget", "retain"):
            corpora = [corpus for other, corpus in self.corpora if other == side]
            for index, corpus in enumerate(corpora):
                evaluation = next_token_task(corpus.name)  # `how-to` and `how_to` share one
                if evaluation in seen:
                    yield (side, index, "name"), f"{corpus.name} is used twice", "", []
                seen.add(evaluation)
                if corpus.protect and (side == "forget" or corpus.use == "held_out"):
                    text = "only a retain text that is scored can be protected"
                    yield (side, index, "protect"), text, "", []
            if all(corpus.use == "held_out" for corpus in corpora):
                yield (side,), "no source is scored (use: scored or both)", "", []
        if self.scoring.skip_positions >= self.scoring.sequence_length:
            length = self.scoring.sequence_length
            text = f"no position of a sequence of {length} tokens would be counted"
            yield ("scoring", "skip_positions"), text, "", []
        if (until := self.select.until) is not None:
            asked = {"retain": until.retain_drop, "forget": until.forget}
            for side in (side for side, wanted in asked.items() if wanted is not None):
                if all(c.use == "scored" for other, c in self.corpora if other == side):
                    text = f"no {side} text is held out to measure this on (use: both or held_out)"
                    key = "retain_drop" if side == "retain" else "forget"
                    yield ("select", "until", key), text, "", []
        if self.curve is not None:
            for side in ("forget", "retain"):
                if all(c.use == "scored" for other, c in self.corpora if other == side):
                    text = f"no {side} text is held out to judge points by (use: both or held_out)"
                    yield ("curve",), text, "", []
        for learned, wanted in (
            ("gates", self.select.ffn.score == "learned" and self.select.ffn.fraction),
            ("maps", self.compensate.learning is not None and self.compensate.enabled),
        ):
            if wanted and self.select.steps > 1:
                text = f"learned {learned} are for a selection at once, and take no steps"
                yield ("select", "steps"), text, "", []
        if self.model.trust_remote_code and self.select.policy == "ragged":
            text = "ragged brings a modeling file, and cannot go with a base that has its own"
            yield ("select", "policy"), text, "", []
        for index, gate in enumerate(self.gates):
            for key, task in zip(("task", "more_than"), gate.tasks, strict=False):
                if task not in self.evaluated:
                    text = f"{task} is not evaluated"
                    yield ("gates", index, key), text, task, sorted(self.evaluated)
            if gate.against == "control" and self.control is None:
                yield ("gates", index, "against"), "the recipe has no control", "", []
        if self.publish is not None and not self.gates and not self.publish.even_if_failed:
            text = "a recipe without gates cannot pass, and is published only with even_if_failed"
            yield ("publish",), text, "", []


def next_token_task(corpus: str) -> str:
    """Name of the evaluation that predicts the next token on a held-out corpus."""
    return f"next_token_{corpus.replace('-', '_')}"
