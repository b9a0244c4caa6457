"""The `unlearn` command: one short function per verb."""

from __future__ import annotations

import json
import math
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import __version__
from pipeline.cli_compare import compare
from pipeline.cli_curve import curve
from pipeline.cli_models import chat, diff, inspect
from pipeline.cli_options import (
    BaseOption,
    CacheOption,
    CheckpointArgument,
    IdentityOption,
    JsonOption,
    ManifestOption,
    OwnRecipeOption,
    ProviderOption,
    PublicKeyOption,
    QuietOption,
    RecipeArgument,
    RecomputeOption,
    SetOption,
    print_json,
    style_of,
)
from pipeline.cli_publish import YesOption, publish, publishing_of, show_publication
from pipeline.cli_recipes import doctor, new, recipes, schema
from pipeline.cli_relearn import relearn
from pipeline.cli_report import report
from pipeline.errors import (
    EXIT_BROKEN,
    EXIT_DIFFERENT,
    EXIT_GATES_FAILED,
    EXIT_INCONCLUSIVE,
    EXIT_INTERRUPTED,
    EXIT_PASS,
    EXIT_UNVERIFIED,
    EXIT_USAGE,
    InputError,
    UnlearnError,
)
from pipeline.progress import Progress

SIGNALS_ARE_ONE_SECONDS = 5.0
VERDICT_CODES = {
    "PASS": EXIT_PASS,
    "UNJUDGED": EXIT_PASS,
    "FAIL": EXIT_GATES_FAILED,
    "INCONCLUSIVE": EXIT_INCONCLUSIVE,
    "UNVERIFIED COMPENSATION": EXIT_UNVERIFIED,
}
VERIFICATION_CODES = {
    "VERIFIED": EXIT_PASS,
    "DIFFERENT": EXIT_DIFFERENT,
    "UNVERIFIED COMPENSATION": EXIT_UNVERIFIED,
}

app = typer.Typer(
    name="unlearn",
    help="Cut a capability out of a language model, and prove, evaluate and judge what is left.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def run(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Option(help="The output goes to OUT/<recipe>.")] = Path("out"),
    set_: SetOption = None,
    force: Annotated[bool, typer.Option(help="Replace whatever is in the output folder.")] = False,
    yes: YesOption = False,
    cache_dir: CacheOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Make the smaller, unlearned checkpoint of a recipe, and judge it."""
    from pipeline.cache import Cache
    from pipeline.recipe_file import load_recipe
    from pipeline.release.show import show_result
    from pipeline.run import Run

    loaded = load_recipe(recipe, set_ or ())
    cache, progress = Cache(cache_dir), Progress(style_of(json_, quiet))
    target = out.expanduser() / loaded.recipe.name
    publish_it = publishing_of(loaded, yes, cache, progress)
    outcome = Run(loaded, cache, progress).execute(target, force)
    if json_:
        print_json({"event": "result", **_result(outcome.folder, outcome.manifest)})
    else:
        show_result(outcome.folder, outcome.manifest)
    if (published := publish_it(outcome.folder, outcome.manifest["verdict"])) is not None:
        show_publication(published, json_)
    return VERDICT_CODES[outcome.manifest["verdict"]]


@app.command()
def check(
    recipe: RecipeArgument,
    set_: SetOption = None,
    cache_dir: CacheOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Validate a recipe, resolve its sources, and print what would happen, without doing it."""
    from pipeline.cache import Cache
    from pipeline.forecast import forecast
    from pipeline.recipe_file import load_recipe
    from pipeline.release.show import show_forecast

    loaded = load_recipe(recipe, set_ or ())
    result = forecast(loaded, Cache(cache_dir), Progress(style_of(json_, quiet)))
    if json_:
        print_json(result)
    else:
        show_forecast(result)
    return EXIT_PASS


@app.command()
def verify(
    checkpoint: CheckpointArgument,
    base: BaseOption = None,
    recipe: OwnRecipeOption = None,
    set_: SetOption = None,
    recompute: RecomputeOption = False,
    manifest_sha256: ManifestOption = None,
    public_key: PublicKeyOption = None,
    identity: IdentityOption = None,
    identity_provider: ProviderOption = None,
    cache_dir: CacheOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Check that a release is exactly its base minus the units of its manifest, nothing else."""
    from pipeline.cache import Cache
    from pipeline.release.show import show_verification
    from pipeline.release.signing import Signer
    from pipeline.verify import Trust, open_release
    from pipeline.verify import verify as verify_release

    cache, progress = Cache(cache_dir), Progress(style_of(json_, quiet))
    release = open_release(
        checkpoint,
        base,
        recipe,
        set_ or (),
        needs_recipe=recompute,
        cache=cache,
        progress=progress,
    )
    found = verify_release(
        release,
        recompute=recompute,
        trust=Trust(manifest_sha256, Signer(public_key, identity, identity_provider)),
        cache=cache,
        progress=progress,
    )
    if json_:
        print_json({"event": "result", **found.as_dict()})
    else:
        show_verification(found.as_dict())
    return VERIFICATION_CODES[found.decision]


@app.command()
def validate(
    checkpoint: CheckpointArgument,
    base: BaseOption = None,
    recipe: OwnRecipeOption = None,
    set_: SetOption = None,
    recompute: RecomputeOption = False,
    manifest_sha256: ManifestOption = None,
    public_key: PublicKeyOption = None,
    identity: IdentityOption = None,
    identity_provider: ProviderOption = None,
    junit: Annotated[
        Path | None, typer.Option(help="Write JUnit XML to this file.", dir_okay=False)
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Add a summary to this file.", dir_okay=False)
    ] = None,
    base_results: Annotated[
        Path | None, typer.Option(help="Results of the base that --store-base-results wrote.")
    ] = None,
    base_results_sha256: Annotated[
        str | None, typer.Option(help="SHA-256 that this file must have.")
    ] = None,
    store_base_results: Annotated[
        Path | None, typer.Option(help="Write the base's results to this file.", dir_okay=False)
    ] = None,
    cache_dir: CacheOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Verify a release, evaluate it and its base anew by your own recipe, and judge."""
    from pipeline.cache import Cache, digest_of_file
    from pipeline.evaluation.stored import store, use_stored
    from pipeline.release.reports import write_junit, write_markdown
    from pipeline.release.show import show_validation
    from pipeline.release.signing import Signer
    from pipeline.stages.output import check_file, writing
    from pipeline.validate import validate as validate_release
    from pipeline.verify import Trust, open_release

    outputs = {
        "--junit": junit,
        "--markdown": markdown,
        "--store-base-results": store_base_results,
    }
    for option, path in outputs.items():  # before minutes of work
        if path is not None:
            check_file(path, option)
    cache, progress = Cache(cache_dir), Progress(style_of(json_, quiet))
    release = open_release(
        checkpoint, base, recipe, set_ or (), needs_recipe=True, cache=cache, progress=progress
    )
    trust = Trust(manifest_sha256, Signer(public_key, identity, identity_provider))
    if base_results is not None:
        if base_results_sha256 is None:
            raise InputError(
                "stored results are used only with a digest from elsewhere",
                where="--base-results",
                remedy="add --base-results-sha256",
            )
        use_stored(base_results, base_results_sha256, release.base.model.weights_sha256, cache)
    validation = validate_release(
        release, recompute=recompute, trust=trust, cache=cache, progress=progress
    )
    found = validation.as_dict()
    if json_:
        print_json({"event": "result", **found})
    else:
        show_validation(found)
    for path, write in ((junit, write_junit), (markdown, write_markdown)):
        if path is not None:
            with writing(path):
                write(path, found)
    if store_base_results is not None and validation.judgement is not None:
        with writing(store_base_results):
            store(store_base_results, validation.judgement.evaluations["base"], cache)
        progress.say(f"Base results: sha256 {digest_of_file(store_base_results)}")
    return VERDICT_CODES[found["verdict"]]


@app.command()
def sign(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of the release.")],
    private_key: Annotated[
        Path | None,
        typer.Option(help="PEM file with an elliptic curve key. Default: Sigstore, by identity."),
    ] = None,
    password: Annotated[
        str | None,
        typer.Option(envvar="UNLEARN_KEY_PASSWORD", help="Password of the key, if it has one."),
    ] = None,
) -> int:
    """Sign a release, so that others can check who vouches for every file of it."""
    from pipeline.release.checks.files import check_hashes
    from pipeline.release.signing import sign as sign_release
    from pipeline.verify import manifest_of

    if wrong := check_hashes(checkpoint, manifest_of(checkpoint)):
        raise InputError(
            f"{wrong[0].what}; nothing was signed",
            where=f"{checkpoint / wrong[0].where}",
            remedy="make the release again, or undo what was changed after it was made",
        )
    print(f"Signed: {sign_release(checkpoint, private_key, password)}")
    return EXIT_PASS


@app.command()
def export(
    checkpoint: Annotated[
        str, typer.Argument(help="A checkpoint folder, or organisation/name@revision of the Hub.")
    ],
    type_: Annotated[
        str, typer.Option("--type", help="Type of the matrices: F32, F16, BF16 or Q8_0.")
    ] = "F16",
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: CHECKPOINT-TYPE.gguf beside it.")
    ] = None,
    pre_tokenizer: Annotated[
        str | None,
        typer.Option(help="llama.cpp's name of the pre-tokenizer, where it is not recognised."),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(help="Run the file in llama.cpp beside the checkpoint; extra `gguf`."),
    ] = False,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Write a checkpoint as one GGUF file, for llama.cpp and what is built on it."""
    from pipeline.exporting import export_gguf
    from pipeline.release.show import show_export

    progress = Progress(style_of(json_, quiet))
    found = export_gguf(checkpoint, type_, out, pre_tokenizer, compare, progress)
    if json_:
        print_json({"event": "result", **found})
    else:
        show_export(found)
    return EXIT_DIFFERENT if found["agrees"] is False else EXIT_PASS


for verb in (
    curve,
    compare,
    relearn,
    report,
    publish,
    diff,
    chat,
    new,
    recipes,
    inspect,
    schema,
    doctor,
):
    app.command()(verb)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command; every error ends in a documented exit code, none in a traceback."""
    _listen()
    try:
        code = app(standalone_mode=False)
    except SystemExit as end:
        # Completion ends so; and, not with 0, where the reader of our output is gone, as in
        # `unlearn recipes | head -1`.
        code = EXIT_BROKEN if end.code else EXIT_PASS
    except BaseException as error:
        code = _report(error)
    else:
        if code == EXIT_INTERRUPTED:  # typer made an exit code of it
            code = _report(KeyboardInterrupt())
    sys.exit(code)


def _report(error: BaseException) -> int:
    """Say what went wrong, as a JSON object if those are asked for, and return the exit code."""
    where = remedy = ""
    if isinstance(error, UnlearnError):
        what, where, remedy, code = error.what, error.where, error.remedy, error.exit_code
    elif isinstance(error, KeyboardInterrupt | typer.Abort):
        what, remedy, code = "interrupted", "the same command continues", EXIT_INTERRUPTED
        for number in _signals():  # Python would give them back their defaults while it exits
            signal.signal(number, signal.SIG_IGN)
    elif isinstance(error, PermissionError) and isinstance(error.filename, str | Path):
        what, where, remedy, code = *_forbidden(error), EXIT_USAGE
    elif callable(getattr(error, "format_message", None)):  # the command line's own errors
        code = EXIT_USAGE
        what, where, remedy = _usage(error)
    else:
        code = EXIT_BROKEN
        what = f"something broke that should not have: {type(error).__name__}: {error}"
        remedy = f"try it with an empty --cache-dir; if it stays so, report it with {_log(error)}"
    if "--json" in sys.argv[1:]:
        fields = {"what": what, "where": where, "remedy": remedy, "exit_code": code}
        print(json.dumps({"event": "error", **fields}), file=sys.stderr)
    else:
        newline = "\n" if code == EXIT_INTERRUPTED else ""  # after the ^C of a terminal
        shown = UnlearnError(what, where=where, remedy=remedy)
        print(f"{newline}unlearn: {shown}", file=sys.stderr)
    return code


def _forbidden(error: PermissionError) -> tuple[str, str, str]:
    what = f"this cannot be read, entered or written to ({error.strerror})"
    remedy = "change its permissions or those of the folders above it, or name another place"
    return what, str(error.filename), remedy


def _usage(error: Any) -> tuple[str, str, str]:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "unlearn"
    what = error.format_message().rstrip(".") or "no command was given"
    return what, "", f"`{command} --help` says what is possible"


def _log(error: BaseException) -> str:
    with tempfile.NamedTemporaryFile(
        "w", prefix="unlearn-", suffix=".log", delete=False, encoding="utf-8"
    ) as log:
        traceback.print_exception(error, file=log)
    return log.name


def _listen() -> None:
    """Take the signals that end a process as Ctrl-C, so that temporary folders are removed.

    Several in a row are one: a second Ctrl-C must not interrupt the clearing up after the first.
    """
    last = -math.inf

    def interrupt(_signal: int, _frame: Any) -> None:
        nonlocal last
        again, last = time.monotonic() - last < SIGNALS_ARE_ONE_SECONDS, time.monotonic()
        if not again:
            raise KeyboardInterrupt

    for number in _signals():
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and a shell's `&` ignore some
            signal.signal(number, interrupt)


def _signals() -> list[signal.Signals]:
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    return [signal.Signals[name] for name in names if hasattr(signal, name)]


def _result(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "verdict": manifest["verdict"],
        "base": manifest["base"],
        "pruned": manifest["pruned"],
        "units": manifest["units"],
        "proof": manifest["proof"],
        "gates": manifest["evaluation"]["gates"],
    }


if __name__ == "__main__":
    main()
