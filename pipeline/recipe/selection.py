"""How units are scored, selected and removed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.recipe.fields import Count, Fraction, MemorySize, PositiveFraction, Section

Importance = Literal["abs", "rms", "std", "freq"]


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


class Learning(Section):
    """How something is learned by gradients on the scored text."""

    steps: Count = Field(60, description="Steps of Adam.")
    rows: Count = Field(
        4,
        description="Rows of forget text in a step, and as many of retain text. More of them, "
        "longer and for more steps, cost less retain text for the same forgetting.",
    )
    retain_rows: Count | None = Field(
        None,
        description="Rows of retain text in a step, if not as many as of forget text. To forget is "
        "learned from little text; that prose of every kind stays takes much.",
    )
    row_tokens: int = Field(
        128, ge=2, strict=True, description="Tokens in a row, and those of a sequence at most."
    )
    retain_weight: float = Field(
        4.0,
        gt=0.0,
        le=1e6,
        description="How much it counts that retain text stays as it was (KL divergence), beside "
        "how badly forget text is predicted (loss, at most 8 nats a token).",
    )
    learning_rate: float = Field(0.2, gt=0.0, le=10.0, description="Adam's learning rate.")


class GateLearning(Learning):
    """How gates of FFN neurons are learned, where `score` is `learned`."""

    fraction: PositiveFraction | None = Field(
        None,
        description="Share of the neurons for which gates are learned. Left out, it is what is "
        "removed, and each fraction learns its own gates; with it, they are learned once, and "
        "every fraction of a curve or of a search takes those that are most closed.",
    )


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


class MapLearning(Learning):
    """How compensation maps are learned, all layers together."""

    steps: Count = Field(40, description="Steps of Adam.")
    row_tokens: int = Field(
        256, ge=2, strict=True, description="Tokens in a row, and those of a sequence at most."
    )
    retain_weight: float = Field(
        100.0,
        gt=0.0,
        le=1e6,
        description="As for gates. Maps can silence forget text altogether, and what is near it: "
        "less weight costs retain text more, and with much more nothing but retain text counts.",
    )
    learning_rate: float = Field(
        0.001,
        gt=0.0,
        le=1.0,
        description="Adam's learning rate of the maps, on a scale where every unit has second "
        "moment 1; after a few steps it falls to nothing.",
    )


class Compensate(Section):
    """Update of output projections: kept units stand in for removed ones."""

    enabled: bool = Field(True, description="Compensate the output projections on retain text.")
    learning: MapLearning | None = Field(
        None,
        description="Then learn the maps by gradients through the whole model, beginning with "
        "those in closed form; left out, these are taken.",
    )
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
