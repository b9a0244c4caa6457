"""The manifest's schema: what a release says of itself, field by field.

`python -m pipeline.export.manifest_schema` prints the JSON Schema that is committed as
`docs/schemas/manifest-5.json`. A field is never changed or removed without a new `FORMAT`;
`upgraded` reads every earlier one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import InputError

FORMAT = 5
SHOWN_PROBLEMS = 3
MOST_EDGES = 1000  # of a histogram: whoever checks a release draws it
DIALECT = "https://json-schema.org/draft/2020-12/schema"

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Indices = list[Count]
VerdictName = Literal["PASS", "FAIL", "INCONCLUSIVE", "UNJUDGED"]


def check_format(manifest: dict[str, Any], where: str) -> None:
    """Check that this version knows a manifest's format.

    Raises:
        InputError: it is of a later one.
    """
    if manifest["format"] > FORMAT:
        raise InputError(
            f"its manifest has format {manifest['format']}, and this version knows {FORMAT}",
            where=where,
            remedy="install a newer version of unlearn-pipeline",
        )


class Part(BaseModel):
    """Base of every part: nothing else is in it, and no type is bent."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Weights(Part):
    """Weights of one of the two models."""

    weights_sha256: Sha256 = Field(description="Digest over all weight files.")
    parameters: Count
    bytes: Count = Field(description="Bytes of all tensors.")


class BaseModelPart(Weights):
    """The model that was cut."""

    name: str
    licence: str | None = Field(description="SPDX identifier, if it is known.")
    origin: dict[str, Any] = Field(
        description="Where it came from: repository and commit, or file."
    )
    files: dict[str, Sha256] = Field(
        description="Digests of its config, tokenizer and what else comes along with its weights."
    )


class CorpusPart(Part):
    """A text, and what of it was used."""

    name: str
    side: Literal["forget", "retain"]
    genre: str
    licence: str
    origin: dict[str, Any]
    scored_documents: Count
    scored_characters: Count
    scored_sha256: Sha256 | None
    held_out_documents: Count
    held_out_characters: Count
    held_out_sha256: Sha256 | None
    selection_documents: Count | None = Field(
        None, description="Held-out documents that a search asked, and that judge nothing."
    )
    selection_sha256: Sha256 | None = None
    read: str = Field(description="What was read and what was dropped.")


class HistogramPart(Part):
    """Units by score: bins between edges, and by layer the number of units in each bin."""

    edges: Annotated[list[float], Field(min_length=2, max_length=MOST_EDGES)]
    kept: list[list[Count]]
    removed: list[list[Count]] = Field(
        description="Those that the last step removed, if there were several."
    )


class UnitCount(Part):
    """Units of one kind, over all layers."""

    kept: Count
    total: Count


class TensorsPart(Part):
    """What was done to the tensors."""

    sliced: list[str]
    compensated: list[str]
    untouched: Count


class ProofPart(Part):
    """Logits of the checkpoint against those of the masked base, in `dtype`."""

    max_difference: float
    mean_difference: float
    logit_scale: float
    same_top1: float
    tokens: Count
    tolerance: float
    dtype: str


class TaskPart(Part):
    """One evaluation of one model; null stands for NaN."""

    task: str
    side: Literal["forget", "retain"]
    metrics: dict[str, float | None]
    stderr: dict[str, float | None]
    higher_is_better: dict[str, bool]
    estimator: dict[str, str | None]
    n: Count = Field(description="Documents.")
    documents: str = Field(description="Digest over the documents.")
    tokens: Count
    seconds: float


class EvaluatedModel(Part):
    """All evaluations of one model."""

    tokens_per_second: float
    tasks: dict[str, TaskPart]


class GatePart(Part):
    """A gate, what it saw and what it decided."""

    task: str
    metric: str
    drops_at_least: float | None = None
    drops_at_most: float | None = None
    scale: str
    chance: float | None = None
    against: str = "base"
    more_than: str | None = None
    base: float | None
    pruned: float | None
    drop: float | None
    drop_low: float | None
    drop_high: float | None
    decision: VerdictName
    sentence: str


class EvaluationPart(Part):
    """What `evaluation.json` holds."""

    base: EvaluatedModel
    pruned: EvaluatedModel
    control: EvaluatedModel | None = None
    verdict: VerdictName
    level_of_each_gate: float
    gates: list[GatePart]
    forward_tokens_per_second: dict[str, float]


class PromptPart(Part):
    """A prompt and how both models go on."""

    prompt: str
    before: str
    after: str


class LayerPart(Part):
    """Kept units of one layer."""

    ffn: Indices = Field(description="In a mixture of experts, expert after expert.")
    query_heads: Indices
    kv_heads: Indices
    experts: Indices = Field(description="Routed experts; none in a dense model.")


class PlanPart(Part):
    """Units of a layer of the base, and those that each layer keeps."""

    ffn: Count
    heads: Count
    kv_heads: Count
    layers: list[LayerPart]
    experts: Count


class ProbePart(Part):
    """What a share of the recipe's fractions did to the selection text."""

    portion: float
    removed: float = Field(description="Share of the kind's units, of the kind of which most is.")
    accuracy: float = Field(description="Top-1 of the forget text.")
    forget_drop: float = Field(description="Relative drop of it.")
    retain_drop: float


class SearchPart(Part):
    """How a search for `select.until` ended."""

    portion: float = Field(
        gt=0.0, le=1.0, description="Share of the recipe's fractions that is removed."
    )
    reason: str
    probes: list[ProbePart]


class CurvePointPart(Part):
    """A cut, and what it does to the judged texts."""

    removed: float = Field(description="Share of the kind's units, of the kind of which most is.")
    forget_drop: float = Field(description="Relative drop of the top-1 of the forget texts.")
    retain_drop: float


class CurvePart(Part):
    """Forgetting against its cost, over ways to select and fractions."""

    texts: dict[str, Literal["forget", "retain"]]
    tokens: Count = Field(description="Of each text.")
    settings: dict[str, list[CurvePointPart]]
    chosen: CurvePointPart = Field(description="What was released.")


class PublicationPart(Part):
    """What publishing added to the release, and the verdict that it overrode."""

    even_if_failed: bool = Field(description="It was published although it did not pass its gates.")
    extra: list[str] = Field(description="Added files, of which nothing but a hash is checked.")


class FilePart(Part):
    """A file of the release."""

    sha256: Sha256
    bytes: Count


class Manifest(Part):
    """What a release says of itself: all of it can be checked, as docs/verification.md says."""

    format: Literal[5]
    name: str
    description: str
    language: str
    verdict: VerdictName
    base: BaseModelPart
    pruned: Weights
    recipe: dict[str, Any] = Field(description="The recipe with all overrides and defaults.")
    recipe_sha256: Sha256
    seed: int
    environment: dict[str, str]
    corpora: list[CorpusPart]
    coverage: dict[str, str]
    scores: dict[str, dict[str, float | HistogramPart | None]] = Field(
        description="By unit kind; `shapes` is what each shape policy makes of the ranking."
    )
    units: dict[str, UnitCount]
    tensors: TensorsPart
    proof: ProofPart
    evaluation: EvaluationPart
    prompts: list[PromptPart]
    plan: PlanPart
    run_key: Sha256
    seconds: dict[str, float] = Field(
        description="Of each stage of this run; what was found in the cache took next to none."
    )
    search: SearchPart | None = Field(
        None, description="Absent unless the recipe says `select.until`."
    )
    curve: CurvePart | None = Field(None, description="Absent unless the recipe says `curve`.")
    publication: PublicationPart | None = Field(
        None, description="Absent unless publishing added something."
    )
    files: dict[str, FilePart]


def upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """A manifest of any earlier format, as one of today's; what it did not say stays unsaid."""
    if content.get("format") == 1 and isinstance(content.get("base"), dict):
        content = content | {"format": 2, "base": {"files": {}, **content["base"]}}
    if content.get("format") == 2:
        content = content | {"format": 3, "plan": _with_experts(content.get("plan"))}
    if content.get("format") == 3:
        content = content | {"format": 4, "seconds": {}}
    if content.get("format") == 4:
        content = content | {"format": 5}
    return content


def _with_experts(plan: Any) -> Any:
    """A plan of format 2, which knew dense models alone."""
    if not isinstance(plan, dict) or not isinstance(plan.get("layers"), list):
        return plan
    layers = [
        {"experts": [], **each} if isinstance(each, dict) else each for each in plan["layers"]
    ]
    return {"experts": 0, **plan, "layers": layers}


def problems(content: dict[str, Any]) -> Iterator[str]:
    """Yield where a manifest does not follow the schema of its format."""
    try:
        Manifest.model_validate(upgraded(content))
    except ValidationError as error:
        found = error.errors()
        for each in found[:SHOWN_PROBLEMS]:
            yield f"{'.'.join(map(str, each['loc']))}: {each['msg']}"
        if len(found) > SHOWN_PROBLEMS:
            yield f"and {len(found) - SHOWN_PROBLEMS} more"


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a manifest."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema"
    } | Manifest.model_json_schema()


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2))
