"""Ways to select of which curves are drawn: what each sets in a recipe, and what varies."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """A way to select, whose fraction is varied.

    Attributes:
        name: what tables call it.
        about: in words.
        overrides: what it sets in the recipe.
        key: the fraction that is varied.
        step: the share that is removed at a time, with another scoring after each; None if all is
            selected at once.
    """

    name: str
    about: str
    overrides: tuple[str, ...] = ()
    key: str = "select.ffn.fraction"
    step: float | None = None


FRACTIONS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4)
RANDOM = "random"  # against which selectivity is measured
FFN_ALONE = ("select.attention.fraction=0", "select.experts.fraction=0")
# Learned maps forget, whatever they stand in for: they would hide what a way to select is worth.
CLOSED_FORM = "compensate.learning=null"
# The paper's: the ratio of mean absolute activations, all layers ranked together, nothing protected
# and nothing compensated.
TAKER = (
    *FFN_ALONE,
    "select.policy=padded",
    "select.ffn.multiple_of=1",
    "select.ffn.score=ratio",
    "select.ffn.importance=abs",
    "select.ffn.epsilon=0.001",
    "select.ffn.protect_massive=1e9",
    "compensate.enabled=false",
)
SETTINGS = {
    each.name: each
    for each in (
        Setting("recipe", "the recipe's own selection"),
        Setting("taker-abs", "the paper's, 2 % at a time and scored again", TAKER, step=0.02),
        Setting("taker-abs-once", "the paper's score, at once", TAKER),
        Setting(
            RANDOM,
            "as many of every layer at random",
            (
                "select.ffn.score=random",
                "select.attention.score=random",
                "select.experts.score=random",
                CLOSED_FORM,
            ),
        ),
        Setting(
            "magnitude",
            "the smallest output columns",
            ("select.ffn.score=magnitude", "select.attention.score=magnitude", CLOSED_FORM),
        ),
        Setting("uncompensated", "the recipe's, not compensated", ("compensate.enabled=false",)),
        Setting("learned", "gates learned by gradients", ("select.ffn.score=learned",)),
        Setting("ffn", "the recipe's, FFN neurons alone", FFN_ALONE),
        Setting(
            "heads",
            "key/value groups alone, of all layers together",
            (
                "select.ffn.fraction=0",
                "select.experts.fraction=0",
                "select.policy=ragged",
                "select.attention.unit=kv_group",
            ),
            key="select.attention.fraction",
        ),
    )
}
