"""The report: self-contained, escaped, the same every time, and with the figures of the run."""

from __future__ import annotations

import base64
import copy
import hashlib
import html
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from jinja2 import UndefinedError

from pipeline.cache import read_json
from pipeline.export.manifest_schema import upgraded
from pipeline.recipe import Recipe
from pipeline.release.checks.files import CLAIMS
from pipeline.release.report.page import NAME, report_files
from pipeline.release.report.png import as_png

MANIFESTS = Path(__file__).parents[1] / "export" / "manifests"
SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "br"}
LOADING = {"script", "link", "img", "iframe", "object", "embed", "base", "form", "audio", "video"}
EVIL = "\"'><script>alert(1)</script><img src=x onerror=y></svg></pre></title>&{{ m }}\x1b[31m\x00"
WORDS_WITH_A_MEANING = {"side", "decision", "scale", "against", "unit", "policy", "score"}


class Page(HTMLParser):
    """A page's elements, if each is closed where it must be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and {"td", "th"} & {*self.open}:
            self.tables[-1][-1][-1] += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def manifest(**fields: Any) -> dict[str, Any]:
    """A manifest that a run wrote, with a distribution of scores."""
    content = upgraded(read_json(MANIFESTS / "manifest-3.json"))
    histogram = {
        "edges": [-1.0, 0.0, 0.1, 2.5],
        "kept": [[40, 8, 0], [30, 18, 0], [48, 0, 0]],
        "removed": [[0, 1, 15], [0, 0, 16], [0, 2, 14]],
    }
    content["scores"]["ffn"]["histogram"] = histogram
    return content | {"seconds": {"Surgery": 1.5, "Proof": 75.0}} | fields


def page(content: dict[str, Any]) -> Page:
    return Page(report_files(content)[NAME].decode())


def figure(content: dict[str, Any], name: str) -> ElementTree.Element:
    return ElementTree.fromstring(report_files(content)[f"figures/{name}.svg"].decode())


def looks(drawing: ElementTree.Element, shape: str, look: str) -> list[dict[str, str]]:
    return [
        each.attrib
        for each in drawing.iter(f"{SVG}{shape}")
        if look in each.attrib.get("class", "").split()
    ]


def test_the_page_needs_nothing_from_elsewhere() -> None:
    text = report_files(manifest())[NAME].decode()
    found = Page(text)
    assert not LOADING & {tag for tag, _ in found.elements}
    ids = {attributes["id"] for _, attributes in found.elements if "id" in attributes}
    for tag, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "src"], tag
        assert "style" not in attributes  # the policy would not let it count
        if "href" in attributes:
            assert attributes["href"] in {f"#{name}" for name in ids}
        if "aria-labelledby" in attributes:
            assert {*str(attributes["aria-labelledby"]).split()} <= ids
    assert not re.search(r"@import|url\(|javascript:", text)
    addresses = set(re.findall(r"https?://[^\s\"<]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, which nothing fetches


def test_its_policy_allows_its_own_style_and_nothing_else() -> None:
    text = report_files(manifest())[NAME].decode()
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = [
        each["content"]
        for each in page(manifest()).of("meta")
        if each.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def evil(value: Any, key: str = "") -> Any:
    """The value with markup in every text, names of tasks and versions included."""
    if isinstance(value, dict):
        named = key in ("environment", "seconds", "origin", "coverage")
        return {
            f"{name}{EVIL}" if named and name not in ("lm_eval", "unlearn-pipeline", "machine")
            else name: evil(item, name)
            for name, item in value.items()
        }  # fmt: skip
    if isinstance(value, list):
        return [evil(item, key) for item in value]
    if isinstance(value, str) and key not in WORDS_WITH_A_MEANING:
        return f"{value}{EVIL}"
    return value


def rename_task(content: dict[str, Any], name: str) -> None:
    for model in ("base", "pruned"):
        tasks = content["evaluation"][model]["tasks"]
        tasks[name] = tasks.pop("next_token_code")


def test_no_text_of_a_manifest_is_markup() -> None:
    honest, hostile = manifest(), evil(manifest())
    rename_task(hostile, f"task{EVIL}")
    files = report_files(hostile)
    assert [tag for tag, _ in Page(files[NAME].decode()).elements] == [
        tag for tag, _ in page(honest).elements
    ]
    for name, content in files.items():
        assert b"<script" not in content and b"<img" not in content, name
        if name != NAME:
            ElementTree.fromstring(content.decode())
    shown = page(hostile).text
    assert shown.count("<script>alert(1)</script>") > 30
    assert "{{ m }}" in shown  # a template is no more than text either


def test_generated_text_is_shown_as_it_was_generated() -> None:
    texts = {"prompt": "\n\na <b>", "before": "\n  x = 1\n\n", "after": "` ``` &amp; \t|"}
    text = report_files(manifest(prompts=[texts]))[NAME].decode()
    blocks = [html.unescape(each) for each in re.findall(r"<pre[^>]*>\n(.*?)</pre>", text, re.S)]
    assert blocks[:3] == [*texts.values()] and "line breaks" not in text


def test_line_breaks_at_the_end_of_what_is_written_are_counted() -> None:
    example = {"prompt": "def f():\n", "before": "\n    pass\n", "after": "-  1.\n\n\n\n"}
    page_text = report_files(manifest(prompts=[example]))[NAME].decode()
    assert "-  1.</pre>\n<p>and 4 line breaks, with nothing between.</p>" in page_text


def test_the_same_manifest_gives_the_same_bytes() -> None:
    content = manifest()
    content["evaluation"]["pruned"]["tasks"]["next_token_code"]["metrics"]["loss"] = float("nan")
    content["prompts"] = tuple(content["prompts"])
    written = copy.deepcopy(content)
    written["evaluation"]["pruned"]["tasks"]["next_token_code"]["metrics"]["loss"] = None
    assert report_files(content) == report_files(written) == report_files(content)


def test_neither_the_list_of_files_nor_publishing_changes_it() -> None:
    """Its own hash is in that list, and publishing adds to the manifest."""
    content = manifest()
    more = content | {"files": {}, "publication": {"even_if_failed": True, "extra": ["extra/a.md"]}}
    del content["files"]
    assert report_files(content) == report_files(more)


def test_a_run_writes_it_from_its_manifest(release: Callable[..., Any]) -> None:
    folder = release().folder
    content = read_json(folder / "pruning_manifest.json")
    made = report_files(content)
    assert {*made} >= {NAME, "figures/layers.svg", "figures/scores-ffn.svg", "figures/results.svg"}
    assert {name: (folder / name).read_bytes() for name in made} == made
    assert {*made} <= content["files"].keys()
    assert next(iter(content["seconds"])) == "Base model"


def test_its_figures_are_those_of_the_evaluation(release: Callable[..., Any]) -> None:
    folder = release().folder
    evaluation = read_json(folder / "evaluation.json")
    found = Page((folder / NAME).read_text())
    (table,) = [each for each in found.tables if "documents" in each[0] and "task" in each[0]]
    rows: dict[tuple[str, str], list[str]] = {}
    task = ""
    for row in table[1:]:
        if len(row) == 7:
            task = next(name for name in evaluation["base"]["tasks"] if row[1].endswith(name))
            assert row[0] == evaluation["base"]["tasks"][task]["side"]
            assert row[2] == f"{evaluation['base']['tasks'][task]['n']:,}"
        rows[task, row[-4]] = row[-3:-1]
    assert {metric for _, metric in rows} == {"top1", "loss", "bits_per_byte"}
    for (task, metric), shown in rows.items():
        figures = [evaluation[model]["tasks"][task] for model in ("base", "pruned")]
        assert shown == [
            f"{each['metrics'][metric]:.3f} ± {each['stderr'][metric]:.3f}" for each in figures
        ]
    for task in evaluation["base"]["tasks"]:
        shares = [evaluation[m]["tasks"][task]["metrics"]["top1"] for m in ("base", "pruned")]
        assert "{:.1f} % → {:.1f} %".format(*(100 * share for share in shares)) in found.text


def test_the_recipe_on_it_is_the_recipe() -> None:
    content = manifest()
    text = report_files(content)[NAME].decode()
    (block,) = re.findall(r"</summary>\n<pre>(.*?)</pre>", text, re.DOTALL)
    recipe = yaml.safe_load(html.unescape(block))
    assert recipe == content["recipe"]
    Recipe.model_validate(recipe)


@pytest.mark.parametrize(
    ("verdict", "decisions", "words"),
    [
        ("PASS", "LPKP", "It worked: it lost what it should lose and kept what it should keep"),
        ("PASS", "LP", "(that it kept the rest is no condition), by the one condition"),
        ("PASS", "KP", "it kept what it should keep (that it lost something is no condition)"),
        ("FAIL", "LPKF", "It did not work: 1 of 2 conditions of its recipe failed. Do not use it"),
        ("INCONCLUSIVE", "LPKI", "Not known: 1 of 2 conditions of its recipe could not be decided"),
        ("UNJUDGED", "", "Not judged: its recipe has no conditions."),
    ],
)
def test_the_verdict_comes_first_and_claims_no_more_than_the_gates(
    verdict: str, decisions: str, words: str
) -> None:
    content = manifest(verdict=verdict)
    (gate,) = content["evaluation"]["gates"]
    del gate["drops_at_most"]
    names = {"P": "PASS", "F": "FAIL", "I": "INCONCLUSIVE"}
    content["evaluation"]["gates"] = [
        gate
        | {"drops_at_least" if side == "L" else "drops_at_most": 0.5, "decision": names[decision]}
        for side, decision in zip(decisions[::2], decisions[1::2], strict=True)
    ]
    found = page(content)
    assert words in found.text
    assert found.text.index(words) < found.text.index("What was removed")
    (box,) = [each for each in found.of("p") if str(each.get("class")).startswith("verdict")]
    assert box["class"] == f"verdict {verdict.lower()}"


def test_a_section_without_content_is_left_out() -> None:
    bare = manifest(prompts=[], seconds={})
    bare["scores"]["ffn"].pop("histogram")
    everything = [*range(bare["plan"]["ffn"])]
    for layer in bare["plan"]["layers"]:
        layer["ffn"] = everything
    bare["evaluation"]["gates"] = []
    found = page(bare)
    ids = {attributes.get("id") for attributes in found.of("section")}
    assert ids >= {"results", "cost", "repeat", "limits"} and not ids & {"network", "examples"}
    assert "Time of each stage" not in found.text
    assert {*report_files(bare)} == {NAME, "figures/results.svg"}


@pytest.mark.parametrize("key", ["proof", "recipe", "evaluation", "plan", "seconds"])
def test_a_manifest_that_lacks_something_makes_no_report(key: str) -> None:
    content = manifest()
    del content[key]
    with pytest.raises((KeyError, UndefinedError)):
        report_files(content)


def test_a_model_whose_heads_alone_were_cut_has_a_report_too() -> None:
    content = manifest()
    content["scores"] = {"attention": content["scores"]["ffn"]}
    del content["scores"]["attention"]["protected"]
    assert "figures/scores-attention.svg" in report_files(content)
    assert "massive activations" not in page(content).text


def test_dots_lie_at_their_values() -> None:
    content = manifest()
    drawing = figure(content, "results")
    for model, look in (("base", "before"), ("pruned", "after")):
        tasks = content["evaluation"][model]["tasks"]
        places = [float(each["cx"]) for each in looks(drawing, "circle", look)][1:]  # a legend
        assert places == [
            pytest.approx(8 + 464 * tasks[name]["metrics"]["top1"], abs=0.01)
            for name in ("next_token_code", "next_token_prose")
        ]


@pytest.mark.parametrize("forget", [True, False])
def test_the_allowed_side_of_a_gate_is_shaded(forget: bool) -> None:
    content = manifest()
    (gate,) = content["evaluation"]["gates"]
    del gate["drops_at_most"]
    gate |= {"drops_at_least" if forget else "drops_at_most": 0.5, "scale": "relative"}
    gate |= {"drop": 0.7, "drop_low": 0.6, "drop_high": 0.8, "decision": "PASS"}
    drawing = figure(content, "gates")
    (limit,), (bar,), (allowed,) = (
        looks(drawing, shape, look)
        for shape, look in (("line", "limit"), ("rect", "interval"), ("rect", "allowed"))
    )
    inside = float(bar["x"]) >= float(limit["x1"])
    assert inside
    start, end = float(allowed["x"]), float(allowed["x"]) + float(allowed["width"])
    assert (start if forget else end) == pytest.approx(float(limit["x1"]), abs=0.01)
    text = "".join(drawing.itertext())
    assert "lost 70.0 %, from 60.0 % to 80.0 %" in text
    assert f"{'must lose at least' if forget else 'may lose at most'} 50.0 %: prose" in text


def test_a_gate_whose_drop_is_not_known_is_drawn() -> None:
    content = manifest()
    content["evaluation"]["gates"][0] |= {"drop": None, "drop_low": None, "drop_high": None}
    drawing = figure(content, "gates")
    assert "not known" in "".join(drawing.itertext())
    assert looks(drawing, "rect", "interval") == looks(drawing, "circle", "found") == []


def test_the_layers_that_lost_more_are_darker() -> None:
    content = manifest()
    kept = content["plan"]["layers"][0]["ffn"]
    content["plan"]["layers"][1]["ffn"] = kept[:10]
    content["plan"]["layers"][2]["ffn"] = [*range(content["plan"]["ffn"])]
    cells = [
        each for each in looks(figure(content, "layers"), "rect", "gone") if "height" in each
        and each["height"] == "30"
    ]  # fmt: skip
    assert len(cells) == 2
    assert float(cells[0]["fill-opacity"]) < float(cells[1].get("fill-opacity", "1"))
    assert float(cells[0]["x"]) < float(cells[1]["x"])


def test_the_distribution_counts_every_unit() -> None:
    text = "".join(figure(manifest(), "scores-ffn").itertext())
    assert "kept: 144" in text and "removed: 48" in text


@pytest.mark.parametrize("score", ["contribution", "random", "magnitude"])
def test_a_baseline_does_not_claim_to_know_the_texts(score: str) -> None:
    content = manifest()
    content["recipe"]["select"]["ffn"]["score"] = score
    files = report_files(content)
    informed = score == "contribution"
    assert (b"serves the forget texts" in files["figures/scores-ffn.svg"]) is informed
    assert (b"served the texts that it should no longer" in files[NAME]) is informed


def test_every_figure_that_can_be_made_is_known_to_verify() -> None:
    content = manifest()
    for kind in ("attention", "experts"):
        content["scores"][kind] = content["scores"]["ffn"]
    point = {"removed": 0.1, "forget_drop": 0.5, "retain_drop": 0.02}
    content["curve"] = {
        "texts": {"code": "forget", "prose": "retain"},
        "tokens": 100,
        "settings": {"recipe": [point]},
        "chosen": point,
    }
    made = report_files(content)
    assert len(made) == 11
    assert {*made} == {name for name in CLAIMS if name.startswith("figures/")} | {NAME}


FONTS = ("LiberationSans-Regular", "DejaVuSans", "NotoSans-Regular")


@pytest.mark.skipif(
    not any(next(Path("/usr/share/fonts").rglob(f"{font}.*"), None) for font in FONTS),
    reason="needs a font that figures name",
)
def test_a_png_has_letters_where_arial_is_missing() -> None:
    drawing = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="60" height="20">'
        "<style>.figure { font: 13px system-ui, sans-serif; }</style>"
        '<g class="figure"><text x="2" y="14">WORDS</text></g></svg>'
    )
    blank = drawing.replace("WORDS", "")
    assert len(as_png(drawing.encode())) > len(as_png(blank.encode()))
