"""Silence for libraries that draw their own progress bars; ours is shown instead."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import lm_eval.api.task
from transformers.utils import logging as transformers_logging

LIBRARIES = ("lm_eval", "transformers", "datasets", "huggingface_hub", "accelerate")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries from writing anything below an error."""
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    levels = {logger: logger.level for logger in loggers}
    bars = transformers_logging.is_progress_bar_enabled()
    dataset_bars = datasets.are_progress_bars_disabled()
    bar_of_requests = lm_eval.api.task.tqdm
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()
    # lm-eval gives no switch for the bar that it draws while it builds requests.
    lm_eval.api.task.tqdm = _no_bar
    try:
        yield
    finally:
        lm_eval.api.task.tqdm = bar_of_requests
        for logger, level in levels.items():
            logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        if not dataset_bars:
            datasets.enable_progress_bars()


def _no_bar(items: Iterable[Any], **_: object) -> Iterable[Any]:
    return items
