"""A model that answers token by token answers as `generate` does."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tiny_models import FAMILIES

from pipeline.errors import InputError
from pipeline.evaluation.streaming import Manner, Speaker
from pipeline.stages.base import Base

TinyBase = Callable[..., Base]
PROMPT = "the cat sat on"


def speaker(folder: Path) -> Speaker:
    return Speaker("tiny", folder, "float32")


def whole(one: Speaker, manner: Manner, prompt: str = PROMPT) -> str:
    return list(one.answer(one.read(prompt), manner))[-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_those_of_generate(tiny_base: TinyBase, family: str) -> None:
    one = speaker(tiny_base(family).model.path)
    ids = one.read(PROMPT)
    with torch.inference_mode():
        expected = one.model.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=24, pad_token_id=0
        )
    text = one.tokenizer.decode(expected[0, len(ids) :], skip_special_tokens=True)
    assert whole(one, Manner(24)) == text


def test_an_answer_grows_and_ends_whole(tiny_base: TinyBase) -> None:
    one = speaker(tiny_base("llama").model.path)
    steps = list(one.answer(one.read(PROMPT), Manner(40)))
    assert 1 < len(steps) <= 41
    for before, after in pairwise(steps):
        assert after.startswith(before[:-4])  # bytes of an unfinished character are not shown
    assert not any(step.endswith("\ufffd") for step in steps[:-1])


def test_an_answer_ends_at_the_end_of_text(tiny_base: TinyBase) -> None:
    one = speaker(tiny_base("llama").model.path)
    full = list(one.answer(one.read(PROMPT), Manner(20)))
    token = one.tokenizer(full[0], add_special_tokens=False)["input_ids"][-1]
    one.model.generation_config.eos_token_id = [1, token]
    assert len(list(one.answer(one.read(PROMPT), Manner(20)))) < len(full)


def test_a_seed_decides_what_is_sampled(tiny_base: TinyBase) -> None:
    one = speaker(tiny_base("llama").model.path)
    greedy = whole(one, Manner(20))
    assert whole(one, Manner(20, 0.0, 7)) == greedy
    warm = [whole(one, Manner(20, 1.5, seed)) for seed in (1, 1, 2)]
    torch.manual_seed(99)  # nobody else's random numbers matter
    assert warm[0] == warm[1] == whole(one, Manner(20, 1.5, 1))
    assert len({greedy, *warm}) == 3
    assert whole(one, Manner(20, 1e-6, 3)) == greedy


def test_what_does_not_fit_into_the_context_is_refused(tiny_base: TinyBase) -> None:
    one = speaker(tiny_base("llama", max_position_embeddings=64).model.path)
    assert whole(one, Manner(20))
    with pytest.raises(InputError, match="more than the 64 that tiny can read"):
        whole(one, Manner(63))
    with pytest.raises(InputError, match="nothing to answer"):
        list(one.answer([], Manner()))
