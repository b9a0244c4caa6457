"""The verdict in a sentence that needs no knowledge of the project."""

from __future__ import annotations

from typing import Any

WARNING = "Do not use it as a model that has unlearned something."


def verdict_words(verdict: str, gates: list[dict[str, Any]]) -> str:
    """What the verdict means, and by how many of the recipe's conditions."""
    total = len(gates)
    counts = {
        decision: sum(gate["decision"] == decision for gate in gates)
        for decision in ("PASS", "FAIL", "INCONCLUSIVE")
    }
    if verdict == "PASS":
        return f"It worked: {_what(gates)}, {_by(total)}."
    if verdict == "FAIL":
        return f"It did not work: {counts['FAIL']} of {_conditions(total)} failed. {WARNING}"
    if verdict == "INCONCLUSIVE":
        return (
            f"Not known: {counts['INCONCLUSIVE']} of {_conditions(total)} could not be decided "
            f"with so few documents, and none failed. {WARNING}"
        )
    return "Not judged: its recipe has no conditions. Nothing here says that it unlearned anything."


def _what(gates: list[dict[str, Any]]) -> str:
    """What gates that all passed show: no more than they ask for."""
    sides = {gate.get("drops_at_least") is not None for gate in gates}
    if sides == {True}:
        return "it lost what it should lose (that it kept the rest is no condition)"
    if sides == {False}:
        return "it kept what it should keep (that it lost something is no condition)"
    return "it lost what it should lose and kept what it should keep"


def _by(total: int) -> str:
    return f"by {'the one condition' if total == 1 else f'all {total} conditions'} of its recipe"


def _conditions(total: int) -> str:
    return f"{total} condition{'s' if total != 1 else ''} of its recipe"
