"""The licence that a base model states, and whether the recipe contradicts it.

A pruned model is a derivative: it carries its base's licence, and nobody else can choose it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from yaml import YAMLError  # type: ignore[import-untyped]

from pipeline.errors import InputError

CARD = "README.md"
WORDS = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
# Names of files with a licence, as patterns for `glob` and `fnmatch`: any case, any ending.
LICENCE_FILES = tuple(
    "".join(f"[{letter}{letter.lower()}]" if letter.isalpha() else letter for letter in word) + "*"
    for word in WORDS
)
UNSTATED = ("other", "unknown")  # the Hub's words for a licence that is not in its list


def card_licence(folder: Path) -> str | None:
    """The licence that the model card in a folder states; None if it states none."""
    try:
        return licence_of_card(metadata_load(folder / CARD))
    except (OSError, ValueError, YAMLError):  # no card, or one that cannot be read
        return None


def licence_of_card(card: Any) -> str | None:
    """The licence in a card's metadata; `license: other` has its name in a field of its own."""
    if not isinstance(card, dict):
        return None
    stated = card.get("license")
    if isinstance(stated, list) and len(stated) == 1:
        (stated,) = stated
    if isinstance(stated, str) and stated.lower() in UNSTATED:
        stated = card.get("license_name")
    return spdx(stated) if isinstance(stated, str) else None


def agreed(said: str | None, stated: str | None, where: str) -> str | None:
    """The licence of a base: what it states, or what the recipe says if it states nothing.

    Args:
        said: the recipe's `model.licence`.
        stated: what the model states.
        where: the model, for the error.

    Raises:
        InputError: the two contradict each other.
    """
    if said is not None and stated is not None and spdx(said).lower() != stated.lower():
        raise InputError(
            f"its licence is {stated}, and the recipe says {said}",
            where=where,
            remedy="remove model.licence from the recipe, or correct it",
        )
    return stated if said is None or stated is not None else spdx(said)


def spdx(licence: str) -> str:
    """A licence as SPDX writes it (`Apache-2.0`), or as it is where SPDX does not know it."""
    try:
        return str(canonicalize_license_expression(licence))
    except InvalidLicenseExpression:
        return licence.strip()
