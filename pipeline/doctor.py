"""What this machine lacks: for the default recipe, and for what goes beyond it.

Nothing is downloaded or run. Whatever can be asked of the code that will need it is asked there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from pipeline.cache import Cache
from pipeline.errors import InputError
from pipeline.machine import Check, machine
from pipeline.recipe.texts import PackageSource
from pipeline.recipe_file import load_recipe, shipped_recipe

DISTRIBUTION = "unlearn-pipeline"
DEFAULT_RECIPE = "no-code"
HUB_SECONDS = 5.0


def examine(cache: Cache, out: Path) -> list[Check]:
    """Look at everything that a run can need.

    Args:
        cache: where finished stages would be kept.
        out: where outputs would go.
    """
    return [
        *machine(cache, out),
        *_packages(),
        *_data_packages(),
        *_extras(),
        _reachable_hub(),
        _token(),
    ]


def can_run(checks: list[Check]) -> bool:
    """Whether the default recipe can be run."""
    return not any(check.required and check.state == "missing" for check in checks)


# ── packages ─────────────────────────────────────────────────────────────────────────────────────


def _packages() -> Iterator[Check]:
    """Yield the packages that this one cannot do without: one line if all are there."""
    try:
        wanted = [Requirement(line) for line in requires(DISTRIBUTION) or []]
    except PackageNotFoundError:
        remedy = "run `make setup`, or pip install this folder"
        yield Check("packages", DISTRIBUTION, "missing", "not installed", "", remedy, True)
        return
    needed = [each for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    wrong = [(each, found) for each in needed if (found := _problem(each))]
    for each, found in wrong:
        remedy = f"run `make setup`, or pip install '{each.name}{each.specifier}'"
        yield Check("packages", each.name, "missing", found, "every run", remedy, True)
    if not wrong:
        found = f"all {len(needed)} that are needed"
        yield Check("packages", "packages", "ok", found, "every run", required=True)


def _problem(wanted: Requirement) -> str:
    """Why an installed package does not do; empty if it does."""
    try:
        found = version(wanted.name)
    except PackageNotFoundError:
        return "not installed"
    if wanted.specifier.contains(found, prereleases=True):
        return ""
    return f"{found} is installed, {wanted.specifier} is needed"


def _data_packages() -> Iterator[Check]:
    """Yield the packages that hold model and texts of the default recipe."""
    from pipeline.sources.packages import locate, version_of

    path = shipped_recipe(DEFAULT_RECIPE)
    if path is None:
        remedy = "install this tool again: its recipes are not there"
        yield Check("recipes", DEFAULT_RECIPE, "missing", "no such file", "", remedy, True)
        return
    recipe = load_recipe(str(path)).recipe
    sources = {"model": recipe.model.source} | {c.name: c.source for _, c in recipe.corpora}
    uses: dict[str, dict[str, str]] = {}
    for name, source in sources.items():
        if isinstance(source, PackageSource):
            uses.setdefault(source.package, {})[name] = source.file
    for package, files in uses.items():
        needed = f"`unlearn run {DEFAULT_RECIPE}`: {', '.join(files)}"
        try:
            for file in files.values():
                locate(package, file)
        except InputError as error:
            yield Check("data", package, "missing", error.what, needed, error.remedy, True)
        else:
            yield Check("data", package, "ok", version_of(package), needed, required=True)


def _extras() -> Iterator[Check]:
    """Yield what goes beyond the default recipe, as the code that needs it says."""
    yield _asked(
        "llama.cpp",
        _llama_cpp,
        "`unlearn export --compare`: a GGUF file in real llama.cpp",
        "xllamacpp",
    )
    yield _asked("signatures", _signing, "`unlearn sign`, and verifying one", "model-signing")
    yield _asked("adapters", _adapters, "`unlearn relearn --lora`", "peft")
    yield _asked("figures", _figures, "`--png` of `unlearn report` and `unlearn curve`", "resvg-py")
    yield _asked("sandbox", _sandbox, "tasks that run code that a model wrote (pass@k)")


def _asked(name: str, check: Callable[[], None], needed_for: str, package: str = "") -> Check:
    try:
        check()
    except InputError as error:
        return Check("extras", name, "missing", error.what, needed_for, error.remedy)
    except (ImportError, OSError) as error:  # of a package whose absence was found already
        return Check(
            "extras", name, "missing", str(error), needed_for, "repair what is named above"
        )
    found = f"{package} {version(package)}" if package else "programs can be locked in"
    return Check("extras", name, "ok", found, needed_for)


def _llama_cpp() -> None:
    from pipeline.export.gguf.llama_cpp import check_available

    check_available()


def _signing() -> None:
    from pipeline.release.signing import check_available

    check_available()


def _adapters() -> None:
    from pipeline.evaluation.adapters import check_adapters

    check_adapters()


def _figures() -> None:
    from pipeline.release.report.png import check_png

    check_png()


def _sandbox() -> None:
    from pipeline.evaluation.sandbox import check_available

    check_available()


# ── the Hub ──────────────────────────────────────────────────────────────────────────────────────


def _reachable_hub() -> Check:
    needed = "models, data sets and releases named organisation/name, and `unlearn publish`"
    remedy = "check the network or a proxy (HTTPS_PROXY); a mirror is named by HF_ENDPOINT"

    def missing(found: str, remedy: str = remedy) -> Check:
        return Check("hub", "Hub", "missing", found, needed, remedy)

    try:
        from huggingface_hub import constants, get_session
        from huggingface_hub.errors import OfflineModeIsEnabled

        from pipeline.sources.hub import first_line, is_network
    except ImportError as error:
        return missing(str(error), "repair what is named above")
    if constants.HF_HUB_OFFLINE:
        return missing("HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")
    try:
        answer: Any = get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except OfflineModeIsEnabled:
        return missing("HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")
    except Exception as error:
        # The Hub's client does not wrap what its HTTP library raises, whichever that is.
        if not is_network(error) and not isinstance(error, OSError):
            raise
        return missing(f"{constants.ENDPOINT} cannot be reached ({first_line(error)})")
    if answer.status_code >= 500:
        return missing(f"{constants.ENDPOINT} answers with error {answer.status_code}")
    return Check("hub", "Hub", "ok", f"{constants.ENDPOINT} can be reached", needed)


def _token() -> Check:
    """Whether there is a token; it is neither shown nor sent."""
    needed = "private and gated repositories, and `unlearn publish`"
    remedy = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        from huggingface_hub import get_token
    except ImportError as error:
        return Check("hub", "token", "missing", str(error), needed, "repair what is named above")
    if get_token() is None:
        return Check("hub", "token", "missing", "none", needed, remedy)
    return Check("hub", "token", "ok", "there is one (not shown, not tried)", needed)
