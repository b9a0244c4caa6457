"""Watching routed experts work.

The activations of a mixture's neurons are the input of no module: one module runs all experts of a
layer. transformers lets a program bring its own way of running them; this one shows what passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

NAME = "unlearn_observed"
# Layer, expert, numbers of its tokens in the batch, its neurons' activations [T, U] and what it
# adds to the residual stream [T, H], both times the token's routing weight.
Observe = Callable[[int, int, Tensor, Tensor, Tensor], None]


@contextmanager
def observed(modules: Sequence[nn.Module], observe: Observe) -> Iterator[None]:
    """Call `observe` for every expert that gets tokens, while the block lasts.

    Args:
        modules: the modules that run the routed experts, one a layer, in order.
        observe: is called with what passes.
    """
    layers = {module: layer for layer, module in enumerate(modules)}

    def run(module: nn.Module, hidden_TH: Tensor, chosen_TK: Tensor, weights_TK: Tensor) -> Tensor:
        added_TH = torch.zeros_like(hidden_TH)
        for expert in chosen_TK.unique().tolist():
            tokens_T, slots_T = (chosen_TK == expert).nonzero(as_tuple=True)
            weights_T1 = weights_TK[tokens_T, slots_T][:, None]
            x_TU = _activations(module, expert, hidden_TH[tokens_T])
            y_TH = _projected(module, expert, x_TU) * weights_T1
            added_TH.index_add_(0, tokens_T, y_TH.to(added_TH.dtype))
            observe(layers[module], expert, tokens_T, x_TU * weights_T1, y_TH)
        return added_TH

    configs: list[Any] = [module.config for module in modules]
    before = [config._experts_implementation for config in configs]
    ALL_EXPERTS_FUNCTIONS[NAME] = run
    try:
        for config in configs:
            config._experts_implementation = NAME
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._experts_implementation = name
        del ALL_EXPERTS_FUNCTIONS[NAME]  # type: ignore[no-untyped-call]


def _activations(module: Any, expert: int, hidden_TH: Tensor) -> Tensor:
    inner = _linear(module, "gate_up_proj" if module.has_gate else "up_proj", expert, hidden_TH)
    activations: Tensor = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    return activations


def _projected(module: Any, expert: int, x_TU: Tensor) -> Tensor:
    return _linear(module, "down_proj", expert, x_TU)


def _linear(module: Any, name: str, expert: int, x: Tensor) -> Tensor:
    weight = getattr(module, name)[expert]
    result: Tensor = x @ (weight if module.is_transposed else weight.T)
    return result + getattr(module, f"{name}_bias")[expert] if module.has_bias else result
