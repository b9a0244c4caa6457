"""Next-token prediction on held-out text: the tasks `next_token_<source>`."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval.api.instance import Instance

from pipeline.errors import InputError
from pipeline.evaluation.model import RollingScore

METRICS = {"top1": True, "loss": False, "bits_per_byte": False}  # whether higher is better
DOCUMENT_CHARACTERS = 1600  # about 400 tokens: many short documents say more than a few long ones

Document = dict[str, str]


def next_token_config(task: str, documents: Sequence[Document]) -> dict[str, Any]:
    """Return an lm-eval task that predicts every token of the documents."""

    def dataset(**_: object) -> dict[str, Dataset]:
        return {"test": Dataset.from_list(list(documents))}

    return {
        "task": task,
        "custom_dataset": dataset,
        "test_split": "test",
        "num_fewshot": 0,
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "process_results": process_results,
        "metric_list": [
            {"metric": metric, "aggregation": ratio_of_sums, "higher_is_better": higher}
            for metric, higher in METRICS.items()
        ],
        "metadata": {"version": 1},
    }


def read_documents(path: Path, tokenizer: Any, tokens: int) -> list[Document]:
    """Read held-out documents until they have `tokens` tokens, in the order of their hashes.

    Long documents are cut at a line's or word's end. Only characters decide where, so that the
    documents are the same for base and pruned model.

    Raises:
        InputError: the file cannot be read, a row has no text, or all texts are empty.
    """
    documents = documents_of(_texts(path), tokenizer, tokens)
    if not documents:
        raise InputError("there is no held-out text in this file", where=str(path))
    return documents


def documents_of(texts: Iterable[str], tokenizer: Any, tokens: int) -> list[Document]:
    """Return the documents that `read_documents` makes of these texts."""
    pieces = filter(None, map(_cut, texts))
    documents: list[Document] = []
    count = 0
    for text in sorted(pieces, key=lambda text: hashlib.sha256(text.encode()).digest()):
        if count >= tokens:
            break
        documents.append({"text": text})
        count += len(tokenizer(text, add_special_tokens=False)["input_ids"])
    return documents


def predict(lm: Any, documents: Sequence[Document]) -> dict[str, list[tuple[float, float]]]:
    """Ask a loaded model for the next tokens of documents, without lm-eval's evaluator.

    Returns:
        By metric, of each document a numerator and a denominator.
    """
    requests = [
        Instance("loglikelihood_rolling", document, (document["text"],), number)
        for number, document in enumerate(documents)
    ]
    scores = lm.loglikelihood_rolling(requests)
    found: dict[str, list[tuple[float, float]]] = {metric: [] for metric in METRICS}
    for document, score in zip(documents, scores, strict=True):
        for metric, pair in process_results(document, [score]).items():
            found[metric].append(pair)
    return found


def process_results(doc: Document, results: Sequence[float]) -> dict[str, tuple[float, float]]:
    """lm-eval's `process_results`: a numerator and a denominator for each metric."""
    (score,) = results
    if not isinstance(score, RollingScore):
        raise TypeError(
            "next-token tasks need pipeline.evaluation.model.TokenBudgetLM: "
            "other models do not say which tokens they predicted"
        )
    return {
        "top1": (score.greedy_hits, score.tokens),
        "loss": (-float(score), score.tokens),
        "bits_per_byte": (-float(score) / math.log(2), len(doc["text"].encode())),
    }


def ratio_of_sums(items: Sequence[tuple[float, float]]) -> float:
    """Sum of the numerators over the sum of the denominators, so that long documents weigh more."""
    return sum(top for top, _ in items) / sum(bottom for _, bottom in items)


def _texts(path: Path) -> list[str]:
    texts = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                texts.append(_text(line, f"{path}:{number}"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"held-out text cannot be read: {error}", where=str(path)) from error
    return texts


def _text(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error}", where=where) from error
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise InputError("a row of held-out text needs a string `text`", where=where)
    return str(row["text"])


def _cut(text: str) -> str:
    if len(text) > DOCUMENT_CHARACTERS:
        text = text[:DOCUMENT_CHARACTERS]
        end = max(text.rfind("\n"), text.rfind(" "))
        text = text[:end] if end > DOCUMENT_CHARACTERS // 2 else text
    return text if text.strip() else ""
