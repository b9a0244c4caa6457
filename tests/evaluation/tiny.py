"""A tiny random Llama with a tokenizer of its own."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipeline.evaluation.results import Evaluation

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "while",
    "seven",
    "dogs",
    "ran",
    "home",
    "and",
    "def",
    "return",
    "print",
    "x",
    "y",
    "z",
    "(",
    ")",
    ":",
    "1",
    "2",
]
LONGEST = 96


Run = Callable[..., Evaluation]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, trained on the sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(200), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", bos_token="<|end|>"
    )
    fast.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    return fast


def make_model(folder: Path, *, seed: int = 0, **config: Any) -> Path:
    fast = make_tokenizer()
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    settings = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LONGEST,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=0,
        **config,
    )
    model = LlamaForCausalLM(settings)
    learn(model, fast)
    model.save_pretrained(folder)
    return folder


def learn(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Teach it a little, so that some next tokens are predicted and others are not."""
    optimiser = torch.optim.Adam(model.parameters(), lr=0.03)
    for text in sentences(40, seed=20):
        ids = torch.tensor([[0, *tokenizer(text)["input_ids"]]])
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()


def sentences(count: int, seed: int = 0) -> list[str]:
    choose = random.Random(seed)
    return [" ".join(choose.choices(WORDS, k=choose.randint(3, 30))) for _ in range(count)]
