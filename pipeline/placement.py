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


def input_device(model: nn.Module) -> torch.device:
    """The device on which a model expects its input: that of the first weights in memory."""
    devices = (p.device for p in model.parameters() if p.device.type != "meta")
    return next(devices, torch.device("cpu"))


@contextmanager
def replaced_parameter(
    module: nn.Module, name: str, change: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Let a module compute with another weight inside the block, wherever its own is kept.

    Args:
        module: a module.
        name: one of its parameters.
        change: returns the other weight, of the same shape and type; the original stays as it is.
    """
    weight = getattr(module, name)
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
        save_file({name: change(stored[name]).contiguous()}, file)
        hook.weights_map = _Instead(stored, name, file)
        try:
            yield
        finally:
            hook.weights_map = stored


class _Instead(Mapping[str, Tensor]):
    """Offloaded weights of a module, one of which is read from another file."""

    def __init__(self, stored: Mapping[str, Tensor], name: str, file: Path) -> None:
        self.stored, self.name, self.file = stored, name, file

    def __getitem__(self, name: str) -> Tensor:
        if name != self.name:
            return self.stored[name]
        with safe_open(self.file, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
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
