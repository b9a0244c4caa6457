"""The commands that README and docs show, and the ones among them that no test runs."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from documentation.cli_page import verbs

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)

# Programs that are not ours, and are not run: what they do is not for us to test.
OTHER_PROGRAMS = {".", ".ci/run", "cd", "git", "hf", "openssl", "pip", "vllm"}

FROM_HUB = "reads from the Hub: tests/sources/test_hub.py does it with a server on this machine"
DIGEST = "wants the digest that the command before it printed: tests/test_validate.py takes it"
SIGSTORE = "Sigstore needs a network and a login"
HOURS = "a full evaluation of the real model takes 40 minutes"
TRAINS = "trains for the minutes that it is given: tests/test_compare.py gives it seconds"
MODEL_PROGRAMS = "programs that a model writes: tests/evaluation/test_code_tests.py runs some"
GGUF_BASE = "compares with the base of a GGUF file: tests/sources/test_gguf_models.py converts one"
ITSELF = "would run this test in itself, or set up what runs it"

# Every other command of the pages is run. These are parsed by the command that they call, and the
# recipe that they name is read with what they set.
NOT_RUN = {
    "unlearn relearn out/no-code --also npo=models/npo --also rmu=models/rmu --steps 200": TRAINS,
    "unlearn relearn out/no-code --also learned=out/no-code-learned --also rmu=models/rmu "
    "--steps 60 --every 15 --judged 800": TRAINS,
    "unlearn relearn out/gates-and-maps --also scored=out/no-code --also rmu=models/rmu "
    "--steps 30 --every 10 --judged 800": TRAINS,
    "unlearn check my-recipe --set 'model.source={hub: org/model, revision: 0a1b2c3}'": FROM_HUB,
    "unlearn validate out/no-code --base-results base.json --base-results-sha256 '$DIGEST'": DIGEST,
    "unlearn verify org/model@9f3c2e1 --identity you@example.org "
    "--identity-provider https://accounts.google.com": SIGSTORE,
    "unlearn verify out/no-code --base model.gguf --json": GGUF_BASE,
    "unlearn run no-code --set evaluate.limit=100000 --set evaluate.next_token_tokens=40000 "
    "--set 'evaluate.tasks=[{task: unlearn_basic_skills_coding, side: forget},"
    "{task: unlearn_humaneval_bpb, side: forget, limit: 164},"
    "{task: unlearn_hellaswag, side: retain, limit: 1000},"
    "{task: unlearn_basic_skills_common_knowledge, side: retain},"
    "{task: unlearn_basic_skills_logical_reasoning, side: retain}]'": HOURS,
    "unlearn run no-code --set evaluate.run_generated_code=true "
    "--set 'evaluate.tasks=[{task: unlearn_humaneval_pass, side: forget}]' "
    "--set 'gates=[]'": MODEL_PROGRAMS,
    "unlearn compare no-code": TRAINS,
    "unlearn compare no-code --ways npo,rmu --minutes 30 --no-relearn": TRAINS,
    "make setup": ITSELF,
    "make test": ITSELF,
    "make lint": ITSELF,
    "make format": ITSELF,
    "make docs": ITSELF,
}


@dataclass(frozen=True)
class Shown:
    """What a page shows: a command's words, or a piece of Python.

    Attributes:
        words: the program and its arguments; empty for Python.
        python: the source; empty for a command.
    """

    words: tuple[str, ...] = ()
    python: str = ""

    @property
    def text(self) -> str:
        """The command in one line, quoted as a shell wants it."""
        return self.python or shlex.join(self.words)


def shown_on(page: Path) -> list[Shown]:
    """Commands and Python of a page, in reading order."""
    found = []
    for language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            found.append(Shown(python=text))
            continue
        for line in text.replace("\\\n", "").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                found.append(Shown(tuple(_plain(words[:end]))))
                words = words[end + 1 :]
    return found


def called(shown: Shown) -> list[list[str]]:
    """Arguments of each `unlearn` that a command comes to; none for another target of make.

    Raises:
        subprocess.CalledProcessError: make has no such target.
    """
    program, *arguments = shown.words
    if program == "unlearn":
        return [arguments]
    done = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", *arguments],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    lines = [shlex.split(line, comments=True) for line in done.stdout.splitlines()]
    return [words[1:] for words in lines if words and words[0].endswith("/unlearn")]


def parse(arguments: list[str]) -> None:
    """Let the command parse its arguments, and do nothing.

    Raises:
        KeyError: there is no such verb.
        Exception: of the command line, if an argument or an option is not as it should be.
    """
    verbs().commands[arguments[0]].make_context(arguments[0], list(arguments[1:]))


def _plain(words: list[str]) -> list[str]:
    """`unlearn`, wherever it is."""
    return ["unlearn", *words[1:]] if words[0].endswith("/unlearn") else words
