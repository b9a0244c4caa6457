"""A journal of finished batches, so that a killed evaluation goes on where it was.

One JSON line a batch. Batches are made from all requests of a task, finished ones included, so an
evaluation that was killed comes to the same figures, to the bit, as one that was not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.cache import digest_of


class Journal:
    """Answers to batches, by what was asked.

    Args:
        path: the file; None keeps nothing. Whoever finishes the task removes it.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._known = _read(path) if path is not None else {}

    def answer(self, asked: Any, work: Callable[[], Any]) -> Any:
        """Return the answer to a batch: that of the journal, or of `work`, which is kept.

        Args:
            asked: all that the answer depends on besides the task's key; JSON-able.
            work: makes the answer; JSON-able, and the same when read back.
        """
        if self.path is None:
            return work()
        digest = digest_of(asked)
        if digest not in self._known:
            answer = work()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as lines:
                # A line may have been broken off: a new one begins in any case.
                lines.write("\n" + json.dumps([digest, answer]))
            self._known[digest] = answer
        return self._known[digest]


def _read(path: Path) -> dict[str, Any]:
    known: dict[str, Any] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                digest, answer = json.loads(line)
            except (ValueError, TypeError):
                continue  # broken off by a kill
            known[digest] = answer
    return known
