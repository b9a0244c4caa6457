"""Training between two measurements, in families that keep something between passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_models import load, some_ids

from pipeline.evaluation.adapters import add_adapters
from pipeline.evaluation.model import TokenBudgetLM
from pipeline.evaluation.next_token import predict
from pipeline.evaluation.tuning import Manner, language_loss, tuned
from pipeline.progress import Progress
from pipeline.stages.base import Base

FAMILIES = ("llama", "gpt2", "gptj", "phi3_long", "gemma2", "bloom", "falcon_heads", "mixtral")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapters", [False, True], ids=["weights", "adapters"])
def test_a_model_learns_while_it_is_asked(
    tiny_base: Callable[..., Base], family: str, adapters: bool
) -> None:
    base = tiny_base(family)
    model = load(base.model.path, torch.float32)
    if adapters:
        add_adapters(model, seed=0)
    lm = TokenBudgetLM(model, base.tokenizer, batch_tokens=128, progress=Progress("quiet"))
    rows = some_ids(base, (4, 20))
    documents = [{"text": base.tokenizer.decode(row)} for row in rows]
    losses = []
    for _ in tuned(model, rows, Manner(20, 10, 3e-3, adapters)):
        predict(lm, documents)
        with torch.no_grad():
            losses.append(language_loss(model, rows).item())
    assert len(losses) == 3
    assert losses[2] < losses[1] < losses[0]
