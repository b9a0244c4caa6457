"""The generated pages of docs/reference are what the code says; `make docs` writes them anew."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from documentation.cli_page import cli_page, verbs
from documentation.recipe_page import recipe_page
from pipeline.recipe_schema import json_schema

REFERENCE = Path(__file__).parents[2] / "docs/reference"
PAGES = {"recipe.md": recipe_page, "cli.md": cli_page}


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_what_the_code_says(name: str, pytestconfig: pytest.Config) -> None:
    page, path = PAGES[name](), REFERENCE / name
    if pytestconfig.getoption("write_docs"):
        path.write_text(page, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == page, "`make docs` writes it anew"


def test_every_key_of_the_schema_is_there() -> None:
    schema = json_schema()
    keys = [key for part in (schema, *schema["$defs"].values()) for key in part["properties"]]
    page = recipe_page()
    assert len(keys) > 80
    for key in keys:
        assert f"| `{key}` |" in page, key


def test_every_option_of_every_verb_is_there() -> None:
    sections = dict(re.findall(r"^## unlearn (\S+)\n(.*?)(?=^## |\Z)", cli_page(), re.M | re.S))
    for name, command in verbs().commands.items():
        for parameter in command.params:
            if parameter.param_type_name == "option":
                for option in (*parameter.opts, *parameter.secondary_opts):
                    assert f"`{option}`" in sections[name], f"{name} {option}"
