from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from evaluation.tiny import LONGEST, make_model, sentences
from pipeline.errors import InputError
from pipeline.evaluation.completions import generate
from pipeline.evaluation.model import RollingScore, TokenBudgetLM, load_lm
from pipeline.evaluation.quiet import quiet
from pipeline.progress import Progress

BUDGET = 150


@pytest.fixture(params=[{}, {"tie_word_embeddings": True}], ids=["plain", "tied"])
def pair(
    request: pytest.FixtureRequest, tmp_path: Path, progress: Progress
) -> Iterator[tuple[TokenBudgetLM, HFLM]]:
    folder = make_model(tmp_path / "model", seed=3, **request.param)
    ours = load_lm(folder, dtype="float32", batch_tokens=BUDGET, progress=progress, device="cpu")
    with quiet():
        theirs = HFLM(pretrained=ours.model, tokenizer=ours.tokenizer, batch_size=1)
    yield ours, theirs


def choices() -> list[Instance]:
    """Questions with choices of different lengths, some of one token, one without context."""
    asked = []
    for number, question in enumerate([*sentences(12, seed=5), "", "cat"]):
        for index, choice in enumerate([" the", " cat sat on", " 1", f" {number} dogs ran home"]):
            asked.append(Instance("loglikelihood", {}, (question, choice), index))
    return asked


def test_loglikelihood_is_that_of_lm_eval(pair: tuple[TokenBudgetLM, HFLM]) -> None:
    ours, theirs = pair
    expected = theirs.loglikelihood(choices(), disable_tqdm=True)
    got = ours.loglikelihood(choices())
    assert [value for value, _ in got] == pytest.approx([v for v, _ in expected], abs=1e-3)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]


def test_rolling_is_that_of_lm_eval_and_counts_hits(pair: tuple[TokenBudgetLM, HFLM]) -> None:
    ours, theirs = pair
    texts = [*sentences(10, seed=6), " ".join(sentences(20, seed=7))]  # the last needs windows
    asked = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]
    got = ours.loglikelihood_rolling(asked)
    assert list(map(float, got)) == pytest.approx(theirs.loglikelihood_rolling(asked), rel=1e-4)
    for text, score in zip(texts[:-1], got[:-1], strict=True):
        assert isinstance(score, RollingScore)
        ids = ours.tok_encode(text)
        with torch.no_grad():
            logits = ours.model(torch.tensor([[0, *ids[:-1]]])).logits[0]
        assert score.tokens == len(ids)
        assert score.greedy_hits == sum(logits.argmax(-1) == torch.tensor(ids))
    assert isinstance(got[-1], RollingScore) and got[-1].tokens > LONGEST
    assert 0 < got[-1].greedy_hits < got[-1].tokens


def test_shared_contexts_change_nothing_but_the_tokens_read(
    pair: tuple[TokenBudgetLM, HFLM],
) -> None:
    ours, _ = pair
    with_sharing = ours.loglikelihood(choices())
    read, ours.tokens_read, ours._shares_contexts = ours.tokens_read, 0, False
    without = ours.loglikelihood(choices())
    assert [v for v, _ in with_sharing] == pytest.approx([v for v, _ in without], abs=1e-4)
    assert read < 0.7 * ours.tokens_read


def test_no_forward_pass_exceeds_the_budget(pair: tuple[TokenBudgetLM, HFLM]) -> None:
    ours, _ = pair
    sizes: list[int] = []

    def note(_: Any, __: Any, arguments: dict[str, Any]) -> None:
        sizes.append(arguments["input_ids"].numel())

    ours.model.register_forward_pre_hook(note, with_kwargs=True)
    ours.loglikelihood(choices())
    asked = [Instance("loglikelihood_rolling", {}, (t,), 0) for t in sentences(30, seed=8)]
    ours.loglikelihood_rolling(asked)
    assert len(sizes) > 5
    assert max(sizes) <= BUDGET
    assert ours.tokens_read <= sum(sizes)


def test_only_scored_positions_get_logits(pair: tuple[TokenBudgetLM, HFLM]) -> None:
    ours, _ = pair
    shapes: list[torch.Size] = []
    ours.model.lm_head.register_forward_hook(lambda _, __, out: shapes.append(out.shape))
    ours.loglikelihood([Instance("loglikelihood", {}, (" ".join(["cat"] * 30), " sat"), 0)])
    assert [shape[1] for shape in shapes] == [1]


def test_models_without_logits_to_keep_or_shareable_cache(
    pair: tuple[TokenBudgetLM, HFLM],
) -> None:
    ours, _ = pair
    expected = [v for v, _ in ours.loglikelihood(choices())]
    ours._keeps_logits = False
    assert [v for v, _ in ours.loglikelihood(choices())] == pytest.approx(expected, abs=1e-4)
    ours._shares_contexts = False
    assert [v for v, _ in ours.loglikelihood(choices())] == pytest.approx(expected, abs=1e-4)


def test_sliding_windows_share_contexts_too(tmp_path: Path, progress: Progress) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    folder = make_model(tmp_path / "model")
    torch.manual_seed(0)
    settings = MistralConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=LONGEST,
        sliding_window=8, initializer_range=0.4,
    )  # fmt: skip
    MistralForCausalLM(settings).save_pretrained(folder)
    ours = load_lm(folder, dtype="float32", batch_tokens=BUDGET, progress=progress, device="cpu")
    assert ours._shares_contexts
    shared = [v for v, _ in ours.loglikelihood(choices())]
    ours._shares_contexts = False
    assert shared == pytest.approx([v for v, _ in ours.loglikelihood(choices())], abs=1e-3)


def test_generation_tasks_keep_the_budget_and_the_order(pair: tuple[TokenBudgetLM, HFLM]) -> None:
    ours, theirs = pair
    settings = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    asked = [Instance("generate_until", {}, (t, settings), 0) for t in sentences(9, seed=9)]
    got = ours.generate_until(asked)
    assert got == theirs.generate_until(asked, disable_tqdm=True)


def test_generate_is_greedy_and_repeatable(model_folder: Path) -> None:
    first = generate(model_folder, ["the cat", "def x"], "float32", max_new_tokens=5, device="cpu")
    again = generate(model_folder, ["the cat", "def x"], "float32", max_new_tokens=5, device="cpu")
    assert first == again and len(first) == 2
    assert generate(model_folder, [], "float32") == []


def test_a_folder_without_weights_is_the_readers_error(
    model_folder: Path, tmp_path: Path, progress: Progress
) -> None:
    for path in model_folder.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="cannot be loaded"):
        load_lm(tmp_path, dtype="float32", batch_tokens=100, progress=progress)
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_lm(tmp_path, dtype="float32", batch_tokens=100, progress=progress)
