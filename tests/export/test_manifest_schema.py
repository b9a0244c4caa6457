"""The manifest's schema: today's is committed, and every earlier one is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pipeline.cache import read_json
from pipeline.export.manifest_schema import FORMAT, json_schema, problems, upgraded
from pipeline.selection.plan import Plan

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"
MANIFESTS = Path(__file__).parent / "manifests"
EARLIER = range(1, FORMAT)


def test_the_committed_schema_is_todays() -> None:
    assert read_json(SCHEMAS / f"manifest-{FORMAT}.json") == json_schema()


def test_what_a_run_writes_follows_it(release: Any) -> None:
    manifest = read_json(release().folder / "pruning_manifest.json")
    jsonschema.validate(manifest, json_schema(), cls=jsonschema.Draft202012Validator)
    assert list(problems(manifest)) == []


@pytest.mark.parametrize("number", EARLIER)
def test_a_manifest_of_an_earlier_version_is_read(number: int) -> None:
    """The manifests were written by the versions that had the format."""
    manifest = read_json(MANIFESTS / f"manifest-{number}.json")
    earlier = read_json(SCHEMAS / f"manifest-{number}.json")
    jsonschema.validate(manifest, earlier, cls=jsonschema.Draft202012Validator)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, json_schema(), cls=jsonschema.Draft202012Validator)
    assert list(problems(manifest)) == []
    today = upgraded(manifest)
    jsonschema.validate(today, json_schema(), cls=jsonschema.Draft202012Validator)
    assert Plan.from_dict(today["plan"]) == Plan.from_dict(manifest["plan"])


def test_what_does_not_follow_it_is_named() -> None:
    manifest = upgraded(read_json(MANIFESTS / "manifest-1.json"))
    assert list(problems(manifest | {"extra": 1})) == ["extra: Extra inputs are not permitted"]
    (found,) = problems(manifest | {"seed": "0"})
    assert found.startswith("seed: ")
    assert len(list(problems({"format": FORMAT}))) == 4  # three, and how many more
