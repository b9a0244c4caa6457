"""A released tiny model, and what a forger does to it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from command import Result, Unlearn
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.cache import read_json, write_json
from pipeline.errors import InputError
from pipeline.export.manifest import NAME as MANIFEST
from pipeline.export.manifest import write_manifest
from pipeline.release.card import NAME as CARD
from pipeline.release.card import card_text
from pipeline.release.report.page import FIGURES, write_report
from pipeline.release.report.page import NAME as REPORT
from pipeline.sources.model_folder import digest_of_weights

Change = Callable[[Path], object]
WEIGHTS = "model.safetensors"
FORGED_DIGEST = "0" * 64  # that a test wrote, and that stays


class Release:
    """A release, its base, its recipe and the command that checks it."""

    def __init__(self, folder: Path, base: Path, recipe: Path, unlearn: Unlearn) -> None:
        self.folder, self.base, self.recipe, self.unlearn = folder, base, recipe, unlearn

    def check(self, verb: str, *arguments: str | Path) -> Result:
        """Run `verify` or `validate` on it, quietly."""
        return self.unlearn(verb, self.folder, "--base", self.base, "--quiet", *arguments)

    def verify(self, *arguments: str | Path) -> tuple[int, dict[str, Any]]:
        """Exit code and result of `verify`."""
        return self._result("verify", *arguments)

    def validate(self, *arguments: str | Path) -> tuple[int, dict[str, Any]]:
        """Exit code and result of `validate`, by the recipe that made the release."""
        return self._result("validate", "--recipe", self.recipe, *arguments)

    def _result(self, verb: str, *arguments: str | Path) -> tuple[int, dict[str, Any]]:
        result = self.check(verb, "--json", *arguments)
        assert "Traceback" not in result.err
        assert result.out, result.err
        return result.code, json.loads(result.out.splitlines()[-1], parse_constant=_refuse)


def renew_manifest(folder: Path) -> None:
    """What a forger does: list files and weights as they are now."""
    manifest = read_json(folder / MANIFEST)
    del manifest["files"]
    with contextlib.suppress(InputError, KeyError, TypeError):
        if manifest["pruned"]["weights_sha256"] != FORGED_DIGEST:
            manifest["pruned"]["weights_sha256"] = digest_of_weights(folder, str(folder))
    write_manifest(folder, manifest)


def retell(folder: Path) -> None:
    """What a forger does who knows that card and report are compared: make them anew."""
    renew_manifest(folder)
    manifest = read_json(folder / MANIFEST)
    (folder / CARD).write_text(card_text(manifest))
    untell(folder, cards=())
    with contextlib.suppress(Exception):  # of nonsense there is no report
        write_report(folder, manifest)
    renew_manifest(folder)


def untell(folder: Path, cards: tuple[str, ...] = (CARD,)) -> None:
    """Leave card and report out."""
    for name in (*cards, REPORT):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / FIGURES, ignore_errors=True)


def edit(name: str, change: Callable[[dict[str, Any]], object]) -> Change:
    """Change a JSON file."""

    def apply(folder: Path) -> None:
        content = read_json(folder / name)
        change(content)
        write_json(folder / name, content)

    return apply


def edit_tensors(change: Callable[[dict[str, Tensor]], object], name: str = WEIGHTS) -> Change:
    """Change a safetensors file."""

    def apply(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name, {"format": "pt"})

    return apply


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def flip_bit(name: str) -> Change:
    """Change one bit of a 16-bit tensor."""

    def flip(tensors: dict[str, Tensor]) -> None:
        tensors[name].view(torch.int16).flatten()[3] ^= 1

    return edit_tensors(flip)
