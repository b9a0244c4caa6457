"""What was measured, as the report says it: figures of every task, and gates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pipeline.recipe import next_token_task
from pipeline.release.results import MetricRow, metric_rows

INTERVAL = 1.96  # standard errors on either side hold 95 %
OWN_TASK = "unlearn_"
METRICS = {
    "top1": "next tokens guessed right",
    "loss": "mean surprise at the next token, in nats; less is better",
    "acc": "questions answered right",
    "acc_norm": "questions answered right",
    "bits_per_byte": "surprise at each byte, in bits; less is better",
    "pass@1": "programs that pass their tests",
}


@dataclass(frozen=True)
class Value:
    """A figure with the interval that holds it at 95 %, if its standard error is known."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Measured:
    """One metric of one task on every model.

    Attributes:
        row: what the card's table says of it.
        label: the task in plain words.
        meaning: the metric in plain words.
        values: by model ("base", "pruned", "control"); those that are not a number are left out.
        share: it is a share of something, and more of it is better.
        chance: what guessing gives, if a gate says it.
        gated: a gate asks for it.
    """

    row: MetricRow
    label: str
    meaning: str
    values: dict[str, Value]
    share: bool
    chance: float | None
    gated: bool


@dataclass(frozen=True)
class GateRow:
    """One gate; the drop and its bounds are on the gate's scale, None where they are not known.

    Attributes:
        sentence: all of it, as the terminal says it.
        asks: what it asks for, in plain words.
        decision: PASS, FAIL or INCONCLUSIVE.
        forget: it asks for a loss, and not for the lack of one.
        bound: what the drop is compared with.
        drop: how much worse the metric became.
        low: the drop is at least this.
        high: the drop is at most this.
        scale: of the drop: relative, absolute or above_chance.
    """

    sentence: str
    asks: str
    decision: str
    forget: bool
    bound: float
    drop: float | None
    low: float | None
    high: float | None
    scale: str

    def amount(self, value: float) -> str:
        """A value on the gate's scale."""
        return f"{value:.4g}" if self.scale == "absolute" else f"{100 * value:.1f} %"


def measured(manifest: dict[str, Any]) -> list[Measured]:
    """Every metric that the card shows, forget first."""
    evaluation, labels = manifest["evaluation"], task_labels(manifest)
    models = [name for name in ("base", "pruned", "control") if name in evaluation]
    gates: dict[tuple[str, str], float | None] = {}
    for gate in evaluation["gates"]:
        asked = gate["task"], gate["metric"]
        gates[asked] = gate.get("chance") or gates.get(asked)
    found = []
    for row in metric_rows(evaluation):
        values = {}
        for model in models:
            task = evaluation[model]["tasks"].get(row.task, {"metrics": {}, "stderr": {}})
            value = task["metrics"].get(row.metric)
            if value is not None:
                values[model] = _with_interval(value, task["stderr"].get(row.metric))
        better = evaluation["base"]["tasks"][row.task]["higher_is_better"][row.metric]
        within = all(0 <= value.value <= 1 for value in values.values())
        key = row.task, row.metric
        found.append(
            Measured(
                row=row,
                label=labels.get(row.task, row.task),
                meaning=METRICS.get(row.metric, row.metric),
                values=values,
                share=better and within and {"base", "pruned"} <= values.keys(),
                chance=gates.get(key),
                gated=key in gates,
            )
        )
    return found


def headlines(rows: list[Measured], side: str, most: int = 4) -> list[Measured]:
    """The metrics of one side that the first screen shows: the gated ones, or else the first."""
    own = [row for row in rows if row.row.side == side and row.share]
    return ([row for row in own if row.gated] or first_of_each_task(own))[:most]


def first_of_each_task(rows: list[Measured]) -> list[Measured]:
    """One row of every task: the first, or one that a gate asks for."""
    found: dict[str, Measured] = {}
    for row in rows:
        if row.row.task not in found or (row.gated and not found[row.row.task].gated):
            found[row.row.task] = row
    return list(found.values())


def gate_rows(manifest: dict[str, Any]) -> list[GateRow]:
    """The gates in the recipe's order."""
    labels = task_labels(manifest)
    rows = []
    for gate in manifest["evaluation"]["gates"]:
        forget = gate.get("drops_at_least") is not None
        row = GateRow(
            sentence=gate["sentence"],
            asks="",
            decision=gate["decision"],
            forget=forget,
            bound=gate["drops_at_least" if forget else "drops_at_most"],
            drop=gate["drop"],
            low=_finite(gate["drop_low"]),
            high=_finite(gate["drop_high"]),
            scale=gate["scale"],
        )
        more = gate.get("more_than")
        than = f" more than {labels.get(more, more)}" if more else ""
        against = " against the control" if gate.get("against", "base") != "base" else ""
        must = "must lose at least" if forget else "may lose at most"
        label = labels.get(gate["task"], gate["task"])
        asks = f"{must} {row.amount(row.bound)}{than}{against}: {label}"
        rows.append(GateRow(**{**vars(row), "asks": asks}))
    return rows


def task_labels(manifest: dict[str, Any]) -> dict[str, str]:
    """Tasks in plain words: the text that one predicts, or its name without signs."""
    names = [*manifest["evaluation"]["base"]["tasks"]]
    labels = {name: name.removeprefix(OWN_TASK).replace("_", " ") for name in names}
    texts = {
        next_token_task(corpus["name"]): f"{corpus['name']} ({corpus['genre']})"
        if corpus["genre"] != corpus["name"]
        else corpus["name"]
        for corpus in manifest["corpora"]
    }
    return labels | {name: text for name, text in texts.items() if name in labels}


def _with_interval(value: float, error: float | None) -> Value:
    if error is None:
        return Value(value)
    return Value(value, value - INTERVAL * error, value + INTERVAL * error)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
