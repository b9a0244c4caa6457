"""A model that answers token by token, so that it can be read while it writes.

`completions.py` is for answers that are kept; here two models take turns, each with a random number
generator of its own, so that the same seed gives the same answers whoever writes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jinja2 import TemplateError

from pipeline.errors import InputError
from pipeline.evaluation.loading import PLAIN, Terms, load
from pipeline.evaluation.quiet import quiet
from pipeline.placement import input_device

HALF_A_CHARACTER = "\ufffd"  # what a decoder writes for bytes whose character is not complete
Message = dict[str, str]


@dataclass(frozen=True)
class Manner:
    """How a model answers.

    Attributes:
        max_new_tokens: longest answer.
        temperature: 0 takes the likeliest token; more is more random.
        seed: of the random numbers.
    """

    max_new_tokens: int = 200
    temperature: float = 0.0
    seed: int = 0


class Speaker:
    """A checkpoint, loaded to be talked to; code that comes with it is never run.

    Args:
        name: what it is called on the screen.
        folder: the checkpoint.
        dtype: type in which it is computed.
        terms: on what terms it is loaded.

    Raises:
        InputError: it cannot be loaded.
    """

    def __init__(self, name: str, folder: Path, dtype: str, terms: Terms = PLAIN) -> None:
        self.name = name
        with quiet():
            self.model, self.tokenizer = load(folder, dtype, None, terms)

    @property
    def has_chat_template(self) -> bool:
        """Whether it was made to be talked to."""
        return bool(self.tokenizer.chat_template)

    def read(self, text: str) -> list[int]:
        """Token ids of a text that is to be continued."""
        return [int(token) for token in self.tokenizer(text)["input_ids"]]

    def read_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation that is to be answered.

        Raises:
            InputError: the chat template fails on it.
        """
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise InputError(
                f"the chat template of {self.name} fails: {error}",
                remedy="do without it: --no-chat-template",
            ) from error
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [int(token) for token in ids]

    def answer(self, ids: Sequence[int], manner: Manner) -> Iterator[str]:
        """Yield the answer as far as it is written, after every token.

        Raises:
            InputError: prompt and answer do not fit into the model's context.
        """
        self._check_room(len(ids), manner)
        device = input_device(self.model)
        generator = torch.Generator(device).manual_seed(manner.seed)
        ends, written = self._ends(), list[int]()
        unread, cache = torch.tensor([list(ids)], device=device), None
        for _ in range(manner.max_new_tokens):
            # Not around the `yield`: the mode would hold for whoever reads.
            with torch.inference_mode(), quiet():
                length = len(ids) + len(written)
                output = self.model(
                    input_ids=unread,
                    attention_mask=torch.ones((1, length), dtype=torch.long, device=device),
                    past_key_values=cache,
                    use_cache=True,
                )
                token = _next(output.logits[0, -1].float(), manner.temperature, generator)
            cache = output.past_key_values
            unread = torch.tensor([[token]], device=device)
            if token in ends:
                break
            written.append(token)
            yield self._text(written)
        yield self._text(written, whole=True)

    def _check_room(self, length: int, manner: Manner) -> None:
        positions = getattr(self.model.config, "max_position_embeddings", None)
        if not length:
            raise InputError("there is nothing to answer", remedy="write a prompt")
        if positions is not None and length + manner.max_new_tokens > positions:
            raise InputError(
                f"{length:,} tokens and {manner.max_new_tokens:,} new ones are more than the "
                f"{positions:,} that {self.name} can read",
                remedy="start anew with /reset, ask less, or lower --max-new-tokens",
            )

    def _ends(self) -> set[int]:
        """Tokens that end an answer."""
        stated = self.model.generation_config.eos_token_id
        found = stated if isinstance(stated, list) else [stated]
        return {int(token) for token in (*found, self.tokenizer.eos_token_id) if token is not None}

    def _text(self, ids: list[int], whole: bool = False) -> str:
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return text if whole else text.rstrip(HALF_A_CHARACTER)


def _next(logits_V: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    if not temperature:
        return int(logits_V.argmax())
    chances_V = (logits_V / temperature).softmax(-1)
    return int(torch.multinomial(chances_V, 1, generator=generator))
