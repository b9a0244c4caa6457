"""Plans and shapes that no run would make: consistent in themselves, and never VERIFIED."""

from __future__ import annotations

import json
from typing import Any

import pytest
from released import edit, renew_manifest
from tiny_models import base_of, cut, random_plan

from pipeline.errors import InputError
from pipeline.evaluation.loading import load
from pipeline.export.manifest import NAME as MANIFEST
from pipeline.export.maps import NAME as MAPS
from pipeline.selection.plan import Plan, Shape
from pipeline.stages.cut import cuts_and_config
from pipeline.surgery.cut import parameters_of
from pipeline.surgery.safetensors_stream import stored_tensors


def forge(made: Any, plan: Plan, *, ragged: bool = False, relabel: bool = False) -> None:
    """Cut the release anew by any plan, and let its manifest say so in every place."""
    base, folder = base_of(made.base), made.folder
    for old in folder.glob("**/*.safetensors"):
        old.unlink()
    (folder / MAPS).parent.rmdir()
    report = cut(base, folder, plan, ragged=ragged, relabel=relabel)
    cuts, _ = cuts_and_config(base, plan, Shape(ragged, relabel))

    def say(manifest: dict[str, Any]) -> None:
        select = manifest["recipe"]["select"]
        select["policy"] = "ragged" if ragged else "uniform"
        select["attention"]["relabel"] = relabel
        manifest["plan"] = json.loads(plan.to_json())
        manifest["units"] = {
            kind: {"kept": kept, "total": total} for kind, (kept, total) in plan.counts().items()
        }
        manifest["tensors"] = {
            "sliced": sorted(set(cuts) & base.tensors.keys()),
            "compensated": [],
            "untouched": report.untouched,
        }
        after = stored_tensors(folder)
        manifest["pruned"] |= {"parameters": parameters_of(after), "bytes": report.bytes[1]}

    edit(MANIFEST, say)(folder)
    renew_manifest(folder)


def test_the_forgery_itself_is_consistent(release: Any) -> None:
    """What is refused below is refused for its plan alone."""
    made = release("llama")
    forge(made, random_plan(base_of(made.base).dimensions, 1, groups=2, ffn=40))
    code, found = made.verify()
    assert (code, found["verdict"], found["findings"]) == (0, "VERIFIED", [])


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("family", ["olmo2", "olmoe"])
def test_heads_that_cannot_go(release: Any, family: str, ragged: bool) -> None:
    """Queries and keys are normalised over all heads together: what is left computes otherwise."""
    made = release(family)
    base = base_of(made.base)
    forge(made, random_plan(base.dimensions, 1, groups=base.dimensions.kv_heads - 1), ragged=ragged)
    code, found = made.verify()
    assert (code, found["verdict"]) == (1, "DIFFERENT")
    assert any("removes heads, which cannot be" in each["what"] for each in found["findings"])


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_a_mixture_said_to_be_ragged(release: Any, family: str) -> None:
    made = release(family)
    forge(made, random_plan(base_of(made.base).dimensions, 1, experts=3), ragged=True)
    code, found = made.verify()
    assert (code, found["verdict"]) == (1, "DIFFERENT")
    assert "which a mixture of experts cannot be" in found["findings"][0]["what"]


def test_experts_that_cannot_be_multiplied(release: Any) -> None:
    made = release("mixtral")
    forge(made, random_plan(base_of(made.base).dimensions, 1, ffn=5))
    code, found = made.verify()
    assert (code, found["verdict"]) == (1, "DIFFERENT")
    assert "keeps 5 neurons of each expert" in found["findings"][0]["what"]


@pytest.mark.parametrize("bias", ["attention_bias", "mlp_bias"])
def test_another_family_that_has_no_place_for_biases(release: Any, bias: str) -> None:
    """The stock class of the other family would compute without them."""
    made = release("llama", base={bias: True, "num_key_value_heads": 6})
    plan = random_plan(base_of(made.base).dimensions, 1, groups=5)
    forge(made, plan, relabel=True)
    code, found = made.verify()
    assert (code, found["verdict"]) == (1, "DIFFERENT")
    assert f"cannot be: {bias} of the model's config is True" in found["findings"][0]["what"]
    with pytest.raises(InputError, match="has no place for stored weights"):
        load(made.folder, "float32", None)  # nor would it be evaluated


def test_recomputing_what_the_own_recipe_does_not_cut(release: Any) -> None:
    made = release("llama", "select.attention.fraction=0.34")
    code, found = made.verify("--recipe", made.recipe, "--recompute")  # which cuts no heads
    assert (code, found["verdict"]) == (1, "DIFFERENT")
    wrong = {each["where"] for each in found["findings"]}
    assert wrong == {f"model.layers.{layer}.self_attn.o_proj.weight" for layer in range(3)}
    assert all("the recipe does not do that" in each["what"] for each in found["findings"])
