"""A GGUF file in real llama.cpp, against the checkpoint that it was made from.

llama.cpp runs in a process of its own: what it cannot load ends the process that tries.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import BrokenError, check_package
from pipeline.export.gguf.llama_cpp_child import TOP

PACKAGE = "xllamacpp"
CHILD = "pipeline.export.gguf.llama_cpp_child"
TIMEOUT_SECONDS = 600
# Nats. llama.cpp rounds activations to the type of the weights, and its GELU is a table in half
# precision: 3e-4 (F32), 0.02 (F16), 0.13 (BF16) and 0.5 (Q8_0) were measured on a 135M model, and
# 0.01 (F32) with GELU on tiny ones. Queries and keys in the wrong order give whole nats.
TOLERANCES = {"F32": 0.05, "F16": 0.2, "BF16": 1.0, "Q8_0": 2.0}


@dataclass(frozen=True)
class Agreement:
    """How far llama.cpp and transformers agree.

    Attributes:
        same_tokenization: texts that both cut into the same tokens.
        texts: texts that both tokenized.
        same_tokens: positions at which both would choose the same next token.
        tokens: positions, along what transformers writes greedily.
        max_difference: largest difference of the log-probabilities of transformers' top tokens.
    """

    same_tokenization: int
    texts: int
    same_tokens: int
    tokens: int
    max_difference: float

    def holds(self, weight_type: str) -> bool:
        """Whether they agree as far as matrices of a type let them."""
        same_texts = self.same_tokenization == self.texts
        return same_texts and self.max_difference <= TOLERANCES[weight_type]


def check_available() -> None:
    """Check that llama.cpp is at hand.

    Raises:
        InputError: it is not.
    """
    check_package(PACKAGE, "brings llama.cpp", extra="gguf")


def compare_with_llama_cpp(
    path: Path,
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    tokens: int,
    only_cut: Sequence[str] = (),
) -> Agreement:
    """Complete texts greedily with both, and compare tokens and log-probabilities.

    Texts are cut with the tokens that the tokenizer puts around them.

    Args:
        path: GGUF file.
        model: the checkpoint, loaded in float32.
        tokenizer: its tokenizer.
        texts: prompts.
        tokens: new tokens of each.
        only_cut: more texts, which are cut into tokens and not continued.

    Raises:
        InputError: xllamacpp is not installed.
        BrokenError: llama.cpp cannot load or run the file.
    """
    cut = [*texts, *only_cut]
    prompts = [tokenizer(text)["input_ids"] for text in cut]
    paths = [_greedy(model, prompt, tokens) for prompt in prompts[: len(texts)]]
    contexts = [
        [*prompt, *(int(each.argmax()) for each in way[:length])]
        for prompt, way in zip(prompts, paths, strict=False)
        for length in range(len(way))
    ]
    letter = tokenizer("a", add_special_tokens=False)["input_ids"][-1]
    theirs = _run(path, {"texts": cut, "contexts": contexts, "letter": letter})
    ours = [each for way in paths for each in way]
    pairs = list(zip(ours, theirs["next"], strict=True))
    return Agreement(
        same_tokenization=sum(a == b for a, b in zip(prompts, theirs["tokenized"], strict=True)),
        texts=len(prompts),
        same_tokens=sum(int(mine.argmax()) == found[0][0] for mine, found in pairs),
        tokens=len(pairs),
        max_difference=max(_largest_gap(mine, found) for mine, found in pairs),
    )


@torch.inference_mode()
def _greedy(model: Any, prompt: list[int], tokens: int) -> list[torch.Tensor]:
    """Log-probabilities [V] of each new token, chosen greedily."""
    ids = torch.tensor([prompt])
    found = []
    for _ in range(tokens):
        logits_V = model(input_ids=ids).logits[0, -1].float()
        found.append(logits_V.log_softmax(-1))
        ids = torch.cat([ids, logits_V.argmax().view(1, 1)], dim=1)
    return found


def _largest_gap(expected_V: torch.Tensor, found: list[list[float]]) -> float:
    """Over transformers' top tokens; llama.cpp reports more, so that none is missing."""
    theirs = {int(token): logprob for token, logprob in found}
    values, ids = expected_V.topk(min(TOP, len(expected_V)))
    pairs = zip(values.tolist(), ids.tolist(), strict=True)
    gaps: list[float] = [abs(ours - theirs.get(token, float("-inf"))) for ours, token in pairs]
    return max(gaps)


def _run(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    check_available()
    try:
        done = subprocess.run(
            [sys.executable, "-m", CHILD, str(path)],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BrokenError(
            f"llama.cpp did not finish in {TIMEOUT_SECONDS} seconds", where=str(path)
        ) from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if " E " in line] or ["no message"]
        raise BrokenError(
            f"llama.cpp cannot run this file (exit {done.returncode}): {lines[0].strip()}",
            where=str(path),
        )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
