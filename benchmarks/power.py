"""`python -m benchmarks.power out/no-code/evaluation.json`: how sure the gates of a run were.

For each gate: the standard error of its drop, from the width of its interval, and the probability
that a model with the very same drop passes at this number of documents and at the gate's level;
then that all gates pass, whose tasks are different documents. Prints a Markdown table.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from scipy import stats


def main() -> None:
    """Read an evaluation and print one row a gate."""
    evaluation = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    level = evaluation["level_of_each_gate"]
    quantile = float(stats.norm.ppf(1 - level))
    print("| gate | documents | bound | drop | its standard error | power |")
    print("|---|---|---|---|---|---|")
    powers = []
    for gate in evaluation["gates"]:
        if gate["drop_low"] is None:
            sys.exit(f"a gate has no interval: {gate['sentence']}")
        documents = evaluation["pruned"]["tasks"][gate["task"]]["n"]
        forget = "drops_at_least" in gate
        bound = gate["drops_at_least" if forget else "drops_at_most"]
        error = (gate["drop_high"] - gate["drop_low"]) / (2 * quantile)
        distance = gate["drop"] - bound if forget else bound - gate["drop"]
        power = float(stats.norm.cdf(distance / error - quantile))
        powers.append(power)
        print(
            f"| {gate['task']} {gate['metric']} | {documents:,} "
            f"| {'≥' if forget else '≤'} {bound:g} | {gate['drop']:.3f} | {error:.3f} "
            f"| {power:.0%} |"
        )
    print(f"\nAll of them pass: {math.prod(powers):.0%}")


if __name__ == "__main__":
    main()
