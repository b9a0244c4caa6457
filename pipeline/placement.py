"""Where a model's weights are: in memory, or offloaded until the module that needs them runs.

accelerate's hooks put an offloaded weight in place before its module's `forward`, and take it away
afterwards; in between the parameter is an empty one on the device "meta".
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, SequentialHook
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

WEIGHT = "weight"


def input_device(model: nn.Module) -> torch.device:
    """The device on which a model expects its input: that of the first weights in memory."""
    devices = (p.device for p in model.parameters() if p.device.type != "meta")
    return next(devices, torch.device("cpu"))


@contextmanager
def replaced_weight(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let a module compute with another weight inside the block, wherever its own is kept.

    Args:
        module: a module with a parameter `weight`.
        change: returns the other weight, of the same shape and type; the original stays as it is.
    """
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    if weight.device.type != "meta":
        original = weight.data
        weight.data = change(original)
        try:
            yield
        finally:
            weight.data = original
        return
    hook = _offloading(module)
    stored = hook.weights_map
    # What does not fit into memory must not come back to it: the other weight waits on the disk.
    with tempfile.TemporaryDirectory(dir=_folder(stored)) as folder:
        file = Path(folder) / "weight.safetensors"
        save_file({WEIGHT: change(stored[WEIGHT]).contiguous()}, file)
        hook.weights_map = _Instead(stored, file)
        try:
            yield
        finally:
            hook.weights_map = stored


class _Instead(Mapping[str, Tensor]):
    """Offloaded weights of a module, one of which is read from another file."""

    def __init__(self, stored: Mapping[str, Tensor], file: Path) -> None:
        self.stored, self.file = stored, file

    def __getitem__(self, name: str) -> Tensor:
        if name != WEIGHT:
            return self.stored[name]
        with safe_open(self.file, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(WEIGHT)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def _offloading(module: nn.Module) -> Any:
    """The hook that puts an offloaded module's weights in place."""
    hook: Any = getattr(module, "_hf_hook", None)
    hooks = hook.hooks if isinstance(hook, SequentialHook) else [hook]
    for each in hooks:
        if isinstance(each, AlignDevicesHook) and each.offload:
            return each
    raise RuntimeError(f"the weight of {type(module).__name__} is on no device, and not offloaded")


def _folder(stored: Any) -> str | None:
    """The folder of offloaded weights, if there is one."""
    folder = getattr(getattr(stored, "dataset", stored), "save_folder", None)
    return None if folder is None else str(folder)
