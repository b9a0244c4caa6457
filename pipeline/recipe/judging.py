"""How a result is judged."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.recipe.fields import Count, PositiveFraction, Section, Side, Text

SettingName = Literal[
    "recipe",
    "taker-abs",
    "taker-abs-once",
    "random",
    "magnitude",
    "uncompensated",
    "learned",
    "ffn",
    "heads",
]


class EvaluationTask(Section):
    """One lm-evaluation-harness task."""

    task: Text = Field(description="Name of an lm-eval task, from `tasks/` or lm-eval itself.")
    side: Side = Field(description="Whether it measures what is forgotten or what is kept.")
    limit: Count | None = Field(None, description="Documents; default: `evaluate.limit`.")
    num_fewshot: int | None = Field(None, ge=0, description="Few-shot examples; default: task's.")


class Evaluate(Section):
    """lm-eval tasks, run on base and pruned, and next-token prediction on held-out text."""

    tasks: tuple[EvaluationTask, ...] = Field((), description="lm-eval tasks.")
    task_folders: tuple[Text, ...] = Field(
        (),
        description="Folders with task YAML files of your own, relative to the recipe's folder; "
        "lm-eval's tasks need none.",
    )
    limit: Count = Field(100, description="Documents of each task, unless it names its own.")
    next_token_tokens: Count = Field(
        8000,
        description="Tokens of held-out text of each source on which the next token is predicted "
        "(tasks `next_token_<source>`, metrics `top1`, `loss` and `bits_per_byte`).",
    )
    batch_tokens: Count = Field(4096, description="Tokens in one forward pass, padding included.")
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="Type in which both models are evaluated."
    )
    chat_template: bool = Field(
        False, description="Apply the chat template to the tasks' questions, as lm-eval does."
    )
    run_generated_code: bool = Field(
        False,
        description="Allow tasks that run programs which the model wrote (pass@k), each in a "
        "locked-down process: Linux 6.2 or newer on x86-64, without network.",
    )
    prompts: tuple[Text, ...] = Field(
        (),
        description="Prompts that base and pruned complete greedily, as they are written here; "
        "shown on the card.",
    )


class CurveSettings(Section):
    """Points of forgetting against its cost around the released one, for card and report."""

    settings: tuple[SettingName, ...] = Field(
        ("recipe", "random"), min_length=1, description="Ways to select, as `unlearn curve` has."
    )
    fractions: tuple[PositiveFraction, ...] = Field(
        (0.02, 0.05, 0.1, 0.15, 0.2),
        min_length=1,
        description="Fractions of ways that select at once, ascending.",
    )
    tokens: Count = Field(2000, description="Tokens of each judged text.")

    @model_validator(mode="after")
    def _ascends(self) -> CurveSettings:
        if list(self.fractions) != sorted(set(self.fractions)):
            raise ValueError("fractions must ascend")
        return self


class Control(Section):
    """A cut of the same shape that knows nothing of the texts, to compare the real one with."""

    score: Literal["random", "magnitude"] = Field(
        "random",
        description="How its units are chosen: at random, or those with the smallest weight norm. "
        "Massive neurons are protected as in the real cut; projections are compensated in closed "
        "form.",
    )
    seed: int = Field(1, ge=0, strict=True, description="Seed of a random control.")


class Gate(Section):
    """A condition on one evaluation; exactly one of the two bounds is set."""

    task: Text = Field(description="Task that is judged, as named under `evaluate`.")
    metric: Text = Field(description="Metric of the task, such as `top1` or `acc_norm`.")
    drops_at_least: float | None = Field(
        None, strict=True, description="Forget gate: the metric must drop by this much or more."
    )
    drops_at_most: float | None = Field(
        None, strict=True, description="Retain gate: the metric must drop by this much or less."
    )
    scale: Literal["absolute", "relative", "above_chance"] = Field(
        "relative",
        description="`absolute`: in units of the metric; `relative`: as a share of the base's "
        "value; `above_chance`: as a share of the base's distance to `chance`.",
    )
    chance: float | None = Field(
        None, ge=0.0, description="Value of the metric for a model that knows nothing."
    )
    against: Literal["base", "control"] = Field(
        "base", description="What the pruned model is compared with; `control` needs that section."
    )
    more_than: Text | None = Field(
        None,
        description="Another task with the same metric, for a gate on selectivity: what counts is "
        "by how much the drop of `task` exceeds that of this one.",
    )

    @property
    def bound(self) -> float:
        """What the drop is compared with."""
        bound = self.drops_at_least if self.drops_at_least is not None else self.drops_at_most
        assert bound is not None  # as validated
        return bound

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks whose drops count: `task`, and `more_than` if there is one."""
        return (self.task,) if self.more_than is None else (self.task, self.more_than)

    @model_validator(mode="after")
    def _is_complete(self) -> Gate:
        if (self.drops_at_least is None) == (self.drops_at_most is None):
            raise ValueError("set exactly one of drops_at_least and drops_at_most")
        if (self.scale == "above_chance") != (self.chance is not None):
            raise ValueError("chance belongs to scale: above_chance, and that scale needs it")
        if self.more_than is not None and self.scale == "above_chance":
            raise ValueError("more_than compares two tasks, whose chances differ: choose a scale")
        if self.more_than == self.task:
            raise ValueError("more_than must name another task")
        return self


class Statistics(Section):
    """How sure a gate must be: one-sided paired tests over documents."""

    level: float = Field(
        0.05,
        gt=0.0,
        lt=0.5,
        description="Probability that any gate passes whose condition does not hold; it is shared "
        "among the gates (Bonferroni).",
    )
    power: float = Field(
        0.8,
        gt=0.0,
        lt=1.0,
        description="Probability of a decision at which the documents that an inconclusive gate "
        "would need are counted.",
    )
    min_documents: int = Field(
        20,
        ge=2,
        strict=True,
        description="With fewer documents a gate is inconclusive, whatever they say; so is one on "
        "a metric that is no mean of values between 0 and 1, unless half as many documents differ "
        "from the commonest difference of the two models.",
    )
