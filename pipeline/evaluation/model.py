"""A model as lm-eval sees it: batches by a budget of tokens, and next-token hits."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from pipeline.cache import digest_of
from pipeline.errors import InputError
from pipeline.evaluation.batches import Request, Row, batches_of, rows_of, tokens_read
from pipeline.evaluation.journal import Journal
from pipeline.evaluation.loading import PLAIN, Terms, load
from pipeline.evaluation.quiet import quiet
from pipeline.placement import input_device
from pipeline.progress import Progress

POSITIONS_AT_ONCE = 512  # rows of float32 logits over the vocabulary that are held at a time


class RollingScore(float):
    """Log-likelihood of a text in nats, with the number of its tokens and of greedy hits."""

    tokens: int
    greedy_hits: int

    def __new__(cls, log_likelihood: float, tokens: int, greedy_hits: int) -> RollingScore:
        """Make the number; `tokens` and `greedy_hits` ride along."""
        score = super().__new__(cls, log_likelihood)
        score.tokens = tokens
        score.greedy_hits = greedy_hits
        return score


@dataclass(frozen=True)
class Score:
    """Log-likelihood of a continuation, and how many of its tokens were the likeliest."""

    log_likelihood: float
    tokens: int
    greedy_hits: int


class TokenBudgetLM(HFLM):  # type: ignore[misc]  # lm-eval has no types
    """lm-eval's Hugging Face model with batches of at most `batch_tokens` padded tokens.

    Differences from `HFLM`: log-likelihoods are computed in float32 and only where they are
    needed; choices of one question share the computation of its context; texts that the
    tokenizer begins with a BOS token do not have that token predicted.

    Args:
        model: a causal language model, already on its device.
        tokenizer: its tokenizer.
        batch_tokens: tokens in one forward pass, padding included.
        progress: where to report; `label` is the name shown.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, batch_tokens: int, progress: Progress
    ) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=1)
        self._device = input_device(model)  # its first weights may be offloaded
        self.batch_tokens = batch_tokens
        self.progress = progress
        self.label = "evaluating"
        self.tokens_read = 0
        self.seconds = 0.0
        self.journal = Journal()
        self._shares_contexts = _has_plain_cache(model)
        accepted = inspect.signature(model.forward).parameters
        self._keeps_logits = "logits_to_keep" in accepted

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether it is the greedy one."""
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Log-likelihood of each text, as a `RollingScore`."""
        if self.prefix_token_id is None:
            raise InputError(
                "the tokenizer has neither a BOS nor an EOS token to begin a text with",
                where=self.label,
            )
        windows: list[Request] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            if tokens[:1] == [self.prefix_token_id]:
                tokens = tokens[1:]
            for window in get_rolling_token_windows(
                tokens, self.prefix_token_id, max_seq_len=self.max_length, context_len=1
            ):
                context, continuation = make_disjoint_window(window)
                windows.append(Request(tuple(context), tuple(continuation)))
                owners.append(owner)
        scores: list[list[Score]] = [[] for _ in requests]
        for owner, score in zip(owners, self._score(windows), strict=True):
            scores[owner].append(score)
        return [
            RollingScore(
                sum(score.log_likelihood for score in parts),
                sum(score.tokens for score in parts),
                sum(score.greedy_hits for score in parts),
            )
            for parts in scores
        ]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Generate for each request; a batch's budget includes the tokens to be generated."""
        sizes = [len(self.tok_encode(request.args[0])) for request in requests]
        order = sorted(range(len(requests)), key=lambda index: -sizes[index])
        texts = [""] * len(requests)
        with self.progress.bar(self.label, len(requests), "documents") as advance:
            while order:
                settings = requests[order[0]].args[1]
                generated = int(settings.get("max_gen_toks", self.max_gen_toks))
                rows = max(1, self.batch_tokens // (sizes[order[0]] + generated))
                batch, order = order[:rows], order[rows:]
                self.batch_size_per_gpu = len(batch)
                asked = [[i, *requests[i].args] for i in batch]
                answers = self._timed(
                    asked, partial(self._generate, asked, [requests[i] for i in batch])
                )
                for index, text in zip(batch, answers, strict=True):
                    texts[index] = text
                    self.tokens_read += sizes[index] + len(self.tok_encode(text))
                advance(len(batch))
        return texts

    def _generate(self, asked: Any, requests: list[Instance]) -> list[str]:
        # Samples depend on the batch alone, so that a killed evaluation goes on with the same.
        torch.manual_seed(int(digest_of(asked)[:15], 16))
        texts: list[str] = super().generate_until(requests, disable_tqdm=True)
        return texts

    def _timed(self, asked: Any, work: Callable[[], Any]) -> Any:
        """The answer to a batch, from the journal or the model, and its time."""

        def timed() -> list[Any]:
            started = time.monotonic()
            answer = work()
            return [answer, time.monotonic() - started]

        answer, seconds = self.journal.answer(asked, timed)
        self.seconds += seconds
        return answer

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = True,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        scores = self._score([Request(tuple(c), tuple(t)) for _, c, t in requests])
        return [(score.log_likelihood, score.greedy_hits == score.tokens) for score in scores]

    def _score(self, requests: Sequence[Request]) -> list[Score]:
        self._check(requests)
        rows = rows_of(requests, longest=self.max_length, share=self._shares_contexts)
        batches = list(batches_of(rows, self.batch_tokens))
        asked = [request.continuation for request in requests]
        scores: dict[int, Score] = {}
        with self.progress.bar(self.label, sum(map(tokens_read, batches)), "tokens") as advance:
            for batch in batches:
                found = self._timed(
                    [[r.prefix, r.suffix, [[i, asked[i]] for i in r.requests]] for r in batch],
                    partial(self._score_batch, batch, requests),
                )
                scores.update((index, Score(*score)) for index, *score in found)
                self.tokens_read += tokens_read(batch)
                advance(tokens_read(batch))
        return [scores[index] for index in range(len(requests))]

    def _check(self, requests: Sequence[Request]) -> None:
        if any(not request.continuation for request in requests):
            raise InputError("a continuation has no tokens of its own", where=self.label)
        if any(len(request.continuation) > self.max_length for request in requests):
            raise InputError(
                f"a continuation is longer than the model's context of {self.max_length} tokens",
                where=self.label,
            )
        cut = sum(len(r.context) + len(r.continuation) > self.max_length + 1 for r in requests)
        if cut:
            self.progress.say(
                f"  {self.label}: {cut} of {len(requests)} prompts are longer than the model's "
                f"context of {self.max_length} tokens; their beginnings are cut off"
            )

    @torch.inference_mode()
    def _score_batch(
        self, batch: list[Row], requests: Sequence[Request]
    ) -> list[tuple[int, float, int, int]]:
        """Number, log-likelihood, tokens and greedy hits of every request of a batch."""
        width = max(len(row.suffix) for row in batch)
        first = min(len(row.suffix) - row.scored for row in batch)
        logits_btv = self._logits(batch, width, width - first)
        offset = width - logits_btv.shape[1]
        scores = []
        for row, logits_tv in zip(batch, logits_btv, strict=True):
            end = len(row.suffix) - offset
            targets = [requests[index].continuation for index in row.requests]
            for index, score in zip(
                row.requests, _scores_of(logits_tv[end - row.scored : end], targets), strict=True
            ):
                scores.append((index, score.log_likelihood, score.tokens, score.greedy_hits))
        return scores

    def _logits(self, batch: list[Row], width: int, keep: int) -> torch.Tensor:
        # Suffixes are padded on the right, where causal attention does not look, so no mask.
        padded = [list(row.suffix) + [0] * (width - len(row.suffix)) for row in batch]
        arguments: dict[str, Any] = {"use_cache": False}
        if batch[0].prefix:
            arguments = {"use_cache": True, "past_key_values": self._read_prefixes(batch)}
        if self._keeps_logits:
            arguments["logits_to_keep"] = keep
        ids_bt = torch.tensor(padded, device=self.device)
        logits: torch.Tensor = self.model(input_ids=ids_bt, **arguments).logits
        return logits

    def _read_prefixes(self, batch: list[Row]) -> DynamicCache:
        numbers = {prefix: i for i, prefix in enumerate(dict.fromkeys(r.prefix for r in batch))}
        cache = DynamicCache(config=self.model.config)
        ids_bt = torch.tensor([list(prefix) for prefix in numbers], device=self.device)
        arguments = {"logits_to_keep": 1} if self._keeps_logits else {}
        self.model(input_ids=ids_bt, past_key_values=cache, use_cache=True, **arguments)
        owners = torch.tensor([numbers[row.prefix] for row in batch], device=self.device)
        cache.batch_select_indices(owners)
        return cache


def load_lm(
    folder: Path,
    *,
    dtype: str,
    batch_tokens: int,
    progress: Progress,
    device: str | None = None,
    terms: Terms = PLAIN,
) -> TokenBudgetLM:
    """Load a checkpoint; code that comes with it is never run."""
    with quiet():
        model, tokenizer = load(folder, dtype, device, terms)
        return TokenBudgetLM(model, tokenizer, batch_tokens=batch_tokens, progress=progress)


def _scores_of(logits_tv: torch.Tensor, continuations: Sequence[tuple[int, ...]]) -> list[Score]:
    """Score continuations that all end at the last of these positions."""
    normalisers, best = [], []
    for piece in torch.split(logits_tv, POSITIONS_AT_ONCE):
        normalisers.append(piece.float().logsumexp(dim=-1))
        best.append(piece.argmax(dim=-1))
    normaliser_t, best_t = torch.cat(normalisers), torch.cat(best)
    scores = []
    for continuation in continuations:
        length = len(continuation)
        targets = torch.tensor(continuation, device=logits_tv.device)
        chosen = logits_tv[-length:].gather(1, targets[:, None])[:, 0].float()
        total = (chosen - normaliser_t[-length:]).double().sum()
        hits = (best_t[-length:] == targets).sum()
        scores.append(Score(float(total), length, int(hits)))
    return scores


def _has_plain_cache(model: Any) -> bool:
    """Whether the model's cache holds keys and values only, which rows can share."""
    if getattr(model, "_is_stateful", False) or not getattr(model.config, "use_cache", True):
        return False
    layers = DynamicCache(config=model.config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
