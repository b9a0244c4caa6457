"""llama.cpp answering for one file, in a process of its own: a request on stdin, JSON on stdout."""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from typing import Any, NoReturn

TOP = 8  # tokens at each position whose probabilities are compared
REPORTED = 10 * TOP  # so that none of the other's top tokens is missing


def _serve(path: str, request: dict[str, Any]) -> NoReturn:
    """Answer a request with llama.cpp, and end this process."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = 512
    params.n_parallel = 1
    params.warmup = False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    answer = {
        "tokenized": [_tokenize(server.listening_address, text) for text in request["texts"]],
        "next": [_next(server, each, request["letter"]) for each in request["contexts"]],
    }
    print(json.dumps(answer), flush=True)
    os._exit(0)  # a server that is closed while its loop is starting waits for that loop forever


def _next(server: Any, context: list[int], letter: int) -> list[tuple[int, float]]:
    """The most probable next tokens with their log-probabilities, best first.

    The server reports the model's own probabilities whatever it chooses, and nothing of a token
    that ends inside a UTF-8 character: it is made to choose a letter.
    """
    answer = server.handle_completions(
        {
            "prompt": context,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": REPORTED,
            "logit_bias": [[letter, 1000.0]],
        }
    )
    if "choices" not in answer:
        raise RuntimeError(f" E {answer}")
    top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return [(each["id"], each["logprob"]) for each in top]


def _tokenize(address: str, text: str) -> list[int]:
    body = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
    request = urllib.request.Request(f"{address}/tokenize", body)
    with urllib.request.urlopen(request, timeout=60) as answer:
        tokens: list[int] = json.load(answer)["tokens"]
    return tokens


if __name__ == "__main__":
    _serve(sys.argv[1], json.load(sys.stdin))
