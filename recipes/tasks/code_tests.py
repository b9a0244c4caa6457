"""Programs that a model wrote, run with their tests: pass@k of HumanEval and MBPP.

Needs the pipeline's sandbox, which runs each program in a locked-down process; unlike the other
tasks here, these are refused unless the recipe sets `evaluate.run_generated_code`.
"""

from __future__ import annotations

from math import comb
from typing import Any

from pipeline.evaluation.sandbox import run_program

KS = (1, 10, 100)
Document = dict[str, Any]
Results = list[str] | list[list[str]]


def humaneval(doc: Document, results: Results) -> dict[str, float]:
    """lm-eval's `process_results`: the prompt goes on with the completion, and is then checked."""
    check = f"{doc['test']}\ncheck({doc['entry_point']})\n"
    return pass_at_k([f"{doc['prompt']}{text}\n{check}" for text in _samples(results)])


def mbpp(doc: Document, results: Results) -> dict[str, float]:
    """lm-eval's `process_results`: the completion is the program, and is then checked."""
    check = "\n".join([doc["setup"], *doc["tests"]])
    return pass_at_k([f"{text}\n{check}\n" for text in _samples(results)])


def pass_at_k(programs: list[str]) -> dict[str, float]:
    """Probability that one of k samples passes, without bias, from n samples.

    1 − C(n − c, k) / C(n, k) where c of them pass (M. Chen et al., arXiv 2107.03374, equation 1).
    """
    n = len(programs)
    right = sum(run_program(program) == "passed" for program in programs)
    return {f"pass@{k}": 1 - comb(n - right, k) / comb(n, k) for k in KS if k <= n}


def _samples(results: Results) -> list[str]:
    (found,) = results
    return [found] if isinstance(found, str) else found
