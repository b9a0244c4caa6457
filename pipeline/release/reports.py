"""Reports of a validation for machines and job pages: JUnit XML and Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from pipeline.release.card import template
from pipeline.release.checks.findings import printable
from pipeline.release.results import metric_rows


class Check(NamedTuple):
    """One thing that was checked."""

    group: str
    name: str
    passed: bool
    what: str


def checks(validation: dict[str, Any]) -> Iterator[Check]:
    """Yield all that a validation checked: the release itself, its figures, and each gate."""
    verification = validation["verification"]
    different = verification["verdict"] == "DIFFERENT"
    lines = _lines(verification["findings"])
    what = "\n".join([verification["sentence"], *lines])
    yield Check("release", "is what its manifest says", not different, what)
    if unchecked := validation["unchecked"]:
        accepted = validation["accepted"]
        words = f"ACCEPTED UNCHECKED, as the recipe says: {unchecked}" if accepted else unchecked
        yield Check("release", "compensation can be checked", accepted, words)
    evaluation = validation["evaluation"]
    if evaluation is None:
        yield Check("evaluation", "was run", False, "not run: the release is not what it says")
        return
    lines = _lines(validation["findings"])
    compared = "as measured, where they could be compared" if validation["notes"] else "as measured"
    what = "\n".join(lines) or compared
    yield Check("evaluation", "figures of the release", not lines, what)
    for gate in evaluation["gates"]:
        name, passed = f"{gate['task']} {gate['metric']}", gate["decision"] == "PASS"
        what = gate["sentence"] if passed else f"{gate['decision']}: {gate['sentence']}"
        yield Check("gates", name, passed, what)


def write_junit(path: Path, validation: dict[str, Any]) -> None:
    """Write the checks as JUnit XML, one test case each."""
    found = list(checks(validation))
    failed = sum(not check.passed for check in found)
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        name=f"unlearn validate {validation['name']}",
        tests=str(len(found)),
        failures=str(failed),
        errors="0",
        skipped="0",
        time=str(validation["seconds"]["total"]),
    )
    for check in found:
        case = ElementTree.SubElement(suite, "testcase", classname=check.group, name=check.name)
        if check.passed:
            ElementTree.SubElement(case, "system-out").text = check.what
        else:
            first, _, _ = check.what.partition("\n")
            ElementTree.SubElement(case, "failure", message=first).text = check.what
    if notes := [printable(note) for note in validation["notes"]]:
        ElementTree.SubElement(suite, "system-out").text = "\n".join(notes)
    ElementTree.indent(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def write_markdown(path: Path, validation: dict[str, Any]) -> None:
    """Write a summary for a job page; a file that exists is added to, as CI systems expect."""
    evaluation = validation["evaluation"]
    text = template("validation.md.jinja").render(
        v=validation,
        checks=list(checks(validation)),
        metrics=metric_rows(evaluation) if evaluation else [],
        controlled=evaluation is not None and "control" in evaluation,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(text)


def _lines(findings: list[dict[str, str]]) -> list[str]:
    return [printable(f"{finding['where']}: {finding['what']}") for finding in findings]
