"""Code that comes with a model: run only if the recipe says so, and then the base's alone.

A checkpoint that was cut from such a base carries a copy of that code, which nothing here runs: its
weights are loaded by the classes of the base's folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from pipeline.cache import read_json
from pipeline.errors import InputError
from pipeline.sources.explained import explained
from pipeline.sources.model_folder import read_config

MAP = "auto_map"
MODEL = AutoModelForCausalLM.__name__
ELSEWHERE = "--"  # in a reference: the code is in another repository


def needs_code(config: dict[str, Any]) -> bool:
    """Whether nothing but a model's own code can load it."""
    return MAP in config and config["model_type"] not in CONFIG_MAPPING


def check_code(folder: Path, where: str, *, allowed: bool) -> bool:
    """Whether code of a model's folder is to be run.

    Args:
        folder: the model's folder.
        where: what the user calls the model, for errors.
        allowed: the recipe says that it may be.

    Raises:
        InputError: the model needs its code, which is not allowed; or the code is not there.
    """
    config = read_config(folder, where)
    if not allowed:
        if needs_code(config):
            raise code_error(config, where)
        return False
    named = references(folder, where)
    for reference in named:
        if ELSEWHERE in reference:
            raise InputError(
                f"its code is in another repository ({reference}), and could not go with a release",
                where=where,
                remedy="copy that code into the model's folder and name it in auto_map",
            )
        if not (folder / f"{reference.partition('.')[0]}.py").is_file():
            raise InputError(
                f"its auto_map names {reference}, and there is no such file",
                where=where,
                remedy="download or copy the model again",
            )
    return bool(named)


def code_error(config: dict[str, Any], where: str) -> InputError:
    """The error for a model that needs code which may not be run."""
    return InputError(
        f"transformers has no {config['model_type']!r}: the model needs code that comes with it, "
        "which is not run",
        where=where,
        remedy="read that code, then set model.trust_remote_code to true; the family must be "
        "described too (docs/architectures.md)",
    )


def not_run(what: str, where: str) -> InputError:
    """The error for a part of a model that cannot be loaded without code."""
    return InputError(
        f"the {what} needs code that comes with the model, which is not run",
        where=where,
        remedy="read that code, then set model.trust_remote_code to true",
    )


def tokenizer_code(folder: Path) -> bool:
    """Whether a tokenizer's config names code of its own."""
    return bool(_map(folder, "tokenizer_config.json"))


def code_files(folder: Path) -> list[str]:
    """Names of the files that hold a model's own code."""
    return sorted(path.name for path in folder.glob("*.py") if path.is_file())


def references(folder: Path, where: str) -> list[str]:
    """Every class of its own code that a model's config and tokenizer name, and that we would load.

    Raises:
        InputError: one of them is no name.
    """
    found = []
    for file, keys in (("config.json", ("AutoConfig", MODEL)), ("tokenizer_config.json", None)):
        for key, value in _map(folder, file).items():
            if keys is None or key in keys:
                found += [value] if isinstance(value, str) else [each for each in value if each]
    if wrong := [each for each in found if not isinstance(each, str)]:
        raise InputError(f"its auto_map names {wrong[0]!r}, which is no class", where=where)
    return found


def load_config(folder: Path, code: Path | None) -> Any:
    """Load a checkpoint's config.

    Args:
        folder: the checkpoint.
        code: folder whose code may be run; None if there is none, which is the rule.

    Raises:
        InputError: it cannot be read.
    """
    with explained("config", folder):
        if code is None:
            return AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        return _config_class(code).from_pretrained(folder, local_files_only=True)


def model_class(code: Path) -> Any:
    """The class of a base's own code that loads its checkpoints; if it has none, the stock one."""
    reference = _map(code, "config.json").get(MODEL)
    if reference is None:
        return AutoModelForCausalLM
    return get_class_from_dynamic_module(reference, code, local_files_only=True)


def empty_model(config: dict[str, Any], code: Path | None) -> Any:
    """The model of a config; to be called where tensors get no memory (device "meta")."""
    stock: Any = AutoModelForCausalLM
    if code is None:
        return stock.from_config(AutoConfig.for_model(**config), trust_remote_code=False)
    own: Any = model_class(code)
    settings = _config_class(code).from_dict(config)
    return own(settings) if own is not stock else stock.from_config(settings)


def _config_class(code: Path) -> Any:
    return type(AutoConfig.from_pretrained(code, local_files_only=True, trust_remote_code=True))


def _map(folder: Path, file: str) -> dict[str, Any]:
    content = read_json(folder / file) if (folder / file).is_file() else {}
    found = content.get(MAP)
    return found if isinstance(found, dict) else {}
