"""Compensation maps beside a checkpoint, so that anyone can check the compensated weights.

They are in a folder of their own: a serving engine that reads every safetensors file beside the
config must not take them for weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.cache import check_permission
from pipeline.surgery.compensation import CompensationMap

NAME = "compensation/maps.safetensors"


def write_maps(folder: Path, maps: Mapping[str, CompensationMap]) -> None:
    """Write M [P, S] of each compensated output projection, float32, under the projection's name.

    P and S are the removed and kept units of the plan, ascending.
    """
    if maps:
        path = folder / NAME
        path.parent.mkdir()
        tensors = {name: each.map_PS.contiguous() for name, each in sorted(maps.items())}
        path.touch()
        mode = path.stat().st_mode  # by the umask, as of all other files
        save_file(tensors, path, {"format": "pt"})  # makes a new one that only its owner may read
        path.chmod(mode)


class StoredMaps:
    """The maps of a release, read one at a time.

    Raises:
        SafetensorError: the file is damaged.
        PermissionError: it may not be read.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        check_permission(self._path)
        with safe_open(self._path, framework="pt") as opened:
            self.names = frozenset(opened.keys())

    def read(self, name: str) -> Tensor:
        """Return M of one output projection."""
        with safe_open(self._path, framework="pt") as opened:
            map_PS: Tensor = opened.get_tensor(name)
        return map_PS


def stored_maps(folder: Path) -> StoredMaps | None:
    """The maps of a release, or None if it has none.

    Raises:
        SafetensorError: the file is damaged.
        PermissionError: it may not be read.
    """
    return StoredMaps(folder) if (folder / NAME).is_file() else None
