"""A recipe file around a tiny model and two short texts."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.recipe_file import LoadedRecipe, load_recipe

PROSE = ["the", "cat", "sat", "on", "a", "mat", "while", "seven", "dogs", "ran", "home", "and"]
CODE = ["def", "return", "print", "x", "y", "z", "(", ")", ":", "1", "2"]
PASSING = [{"task": "next_token_prose", "metric": "loss", "drops_at_most": 9.0}]  # every cut does


def write_recipe(folder: Path, model: Path, **fields: Any) -> Path:
    """Write `tiny.yaml` with its corpora; keyword arguments replace whole sections."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, words, seed in (("code", CODE, 1), ("prose", PROSE, 2)):
        choose = random.Random(seed)
        texts = [" ".join(choose.choices(words, k=choose.randint(5, 40))) for _ in range(120)]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text(lines)
    corpora = {
        name: [{"name": name, "source": {"path": f"{name}.jsonl"}, "genre": name, "licence": "CC0"}]
        for name in ("code", "prose")
    }
    recipe: dict[str, Any] = {
        "name": "tiny",
        "description": "A tiny test.",
        "model": {"source": {"path": str(model)}, "dtype": "float32"},
        "forget": corpora["code"],
        "retain": corpora["prose"],
        "scoring": {
            "forget_tokens": 600,
            "retain_tokens": 900,
            "sequence_length": 32,
            "batch_tokens": 128,
        },
        "select": {"ffn": {"fraction": 0.25, "multiple_of": 8}},
        "evaluate": {
            "next_token_tokens": 200,
            "dtype": "float32",
            "batch_tokens": 256,
            "prompts": ["the cat"],
        },
        "gates": PASSING,
        "statistics": {"min_documents": 5},
    }
    path = folder / "tiny.yaml"
    with path.open("w") as stream:
        YAML().dump(recipe | fields, stream)
    return path


def tiny_recipe(folder: Path, model: Path, *overrides: str, **fields: Any) -> LoadedRecipe:
    """Write the recipe and read it with overrides."""
    return load_recipe(str(write_recipe(folder, model, **fields)), overrides)
