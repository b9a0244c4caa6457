from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import LLAMA_LIKE, cut, random_plan

from pipeline.cache import digest_of_file, read_json
from pipeline.export.checkpoint import copy_companions, pruned_config
from pipeline.export.manifest import NAME, read_manifest, write_manifest
from pipeline.selection.plan import LayerPlan, Plan
from pipeline.stages.base import Base

TinyBase = Callable[..., Base]


@pytest.mark.parametrize("family", LLAMA_LIKE)
@pytest.mark.parametrize(
    ("kept", "changed"),
    [
        ({"ffn": 40}, {"intermediate_size": 40}),
        ({"groups": 2}, {"num_attention_heads": 4, "num_key_value_heads": 2}),
        ({"ffn": 40, "per_group": 1}, {"intermediate_size": 40, "num_attention_heads": 3}),
    ],
)
def test_the_config_differs_in_its_sizes_only(
    tiny_base: TinyBase,
    tmp_path: Path,
    family: str,
    kept: dict[str, int],
    changed: dict[str, int],
) -> None:
    base = tiny_base(family)
    cut(base, tmp_path, random_plan(base.dimensions, 0, **kept))
    before, after = read_json(base.model.path / "config.json"), read_json(tmp_path / "config.json")
    assert after == before | changed


@pytest.mark.parametrize(
    ("family", "changed"),
    [
        ("gpt2", {"n_inner": 40}),
        ("opt", {"ffn_dim": 40}),
        ("falcon_groups", {"ffn_hidden_size": 40}),
        ("gpt_neox", {"intermediate_size": 40}),
        ("bloom", {}),  # 4 · hidden_size, whatever the config says
    ],
)
def test_what_the_config_cannot_say_keeps_its_room(
    tiny_base: TinyBase, tmp_path: Path, family: str, changed: dict[str, int]
) -> None:
    base = tiny_base(family)
    cut(base, tmp_path, random_plan(base.dimensions, 0, ffn=40, groups=2))
    before, after = read_json(base.model.path / "config.json"), read_json(tmp_path / "config.json")
    assert after == before | changed


def test_the_width_of_a_head_is_written_where_it_was_implied(
    tiny_base: TinyBase, tmp_path: Path
) -> None:
    base = tiny_base("llama")
    config = read_json(base.model.path / "config.json")
    del config["head_dim"]
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text(json.dumps(config))
    plan = random_plan(base.dimensions, 0, groups=2)
    cut_config = pruned_config(tmp_path / "base", base.architecture, base.dimensions, plan)
    assert cut_config["head_dim"] == 8


def test_layers_of_different_width_take_the_room_of_the_widest(tiny_base: TinyBase) -> None:
    base = tiny_base("llama")
    heads, groups = tuple(range(6)), tuple(range(3))
    layers = tuple(LayerPlan(tuple(range(n)), heads, groups) for n in (8, 9, 8))
    plan = Plan(64, 6, 3, layers)
    config = pruned_config(base.model.path, base.architecture, base.dimensions, plan)
    assert config["intermediate_size"] == 9
    assert config["num_attention_heads"] == 6


def test_what_belongs_to_a_checkpoint_comes_along_and_nothing_else(tmp_path: Path) -> None:
    base, target = tmp_path / "base", tmp_path / "target"
    wanted = [
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "LICENSE",
        "license.txt",
        "LICENCE.md",
        "COPYING",
        "Notice",
        "USE_POLICY.md",
        "additional_chat_templates/tools.jinja",
    ]
    others = ["README.md", "modeling.py", "pytorch_model.bin", "config.json", "tokenizer_cache/x"]
    for name in wanted + others:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(name)
    target.mkdir()
    copy_companions(base, target)
    found = [str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()]
    assert sorted(found) == sorted(wanted)


def test_a_manifest_has_the_hash_of_every_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a", "sub/b", f"sub/{NAME}"):
        (tmp_path / name).write_text(name)
    write_manifest(tmp_path, {"name": "x"})
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert manifest["files"].keys() == {"a", "sub/b", f"sub/{NAME}"}
    for name, entry in manifest["files"].items():
        assert entry == {
            "sha256": digest_of_file(tmp_path / name),
            "bytes": (tmp_path / name).stat().st_size,
        }


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"{}", b"\xff\xfe"])
def test_what_is_no_manifest_is_none(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / NAME).write_bytes(content)
    assert read_manifest(tmp_path) is None
