"""The metadata block of a model card: what the Hub reads of a release, from its manifest alone.

The fields are those of https://huggingface.co/docs/hub/model-cards. The block is written here and
not by the Hub's own client, whose next version may write the same in other words: a card must come
out of its manifest to the byte. A test reads it with the client's classes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import yaml  # type: ignore[import-untyped]

from pipeline.recipe import next_token_task
from pipeline.release.results import shown_metrics

HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
# What https://huggingface.co/docs/hub/repositories-licenses lists; all else is `other` by name.
LISTED = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0
cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl
ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1
lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa
unlicense zlib pddl lgpl-lr deepfloyd-if-license llama2 llama3 llama3.1 llama3.2 llama3.3 gemma
"""
LICENCES = frozenset(LISTED.split())


def metadata_block(manifest: dict[str, Any]) -> str:
    """The block as YAML, without the lines that enclose it."""
    text: str = yaml.safe_dump(
        metadata(manifest), sort_keys=False, allow_unicode=True, width=math.inf
    )
    return text.rstrip()


def metadata(manifest: dict[str, Any]) -> dict[str, Any]:
    """The fields of the block."""
    name = manifest["base"]["name"]
    base = {}
    if HUB_ID.fullmatch(name):  # the Hub refuses the name of a folder
        # The Hub knows adapter, merge, quantized and finetune: a cut is the last of them or none.
        base = {"base_model": name, "base_model_relation": "finetune"}
    results = list(_results(manifest))
    index = [{"name": manifest["name"], "results": results}] if results else []
    return {
        **_licence(manifest["base"]),
        "language": [manifest["language"]],
        **base,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["unlearning", "selective-pruning"],
        **({"model-index": index} if index else {}),
    }


def _licence(base: dict[str, Any]) -> dict[str, str]:
    """The base's licence, as the Hub writes it."""
    licence = base["licence"]
    if not licence:
        return {}
    if licence.lower() in LICENCES:
        return {"license": licence.lower()}
    found = {"license": "other", "license_name": licence}
    texts = sorted(file for file in base.get("files", {}) if file.startswith("LICENSE"))
    if texts:
        found["license_link"] = texts[0]
    elif HUB_ID.fullmatch(base["name"]):
        found["license_link"] = f"https://huggingface.co/{base['name']}"
    return found


def _results(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What was measured of the released model; its base's figures stand beside each."""
    evaluation = manifest["evaluation"]
    before = evaluation["base"]["tasks"]
    corpora = {next_token_task(corpus["name"]): corpus for corpus in manifest["corpora"]}
    for name, task in sorted(evaluation["pruned"]["tasks"].items()):
        metrics = [
            {
                "type": metric,
                "name": metric,
                "value": task["metrics"][metric],
                "args": {
                    "documents": task["n"],
                    **_number("standard_error", task["stderr"].get(metric)),
                    **_number("of_the_base", before[name]["metrics"].get(metric)),
                },
            }
            for metric in shown_metrics(task["metrics"])
            if _number(metric, task["metrics"][metric])
        ]
        if metrics:
            kept = "forgotten" if task["side"] == "forget" else "kept"
            yield {
                "task": {"type": "text-generation", "name": f"What should be {kept}"},
                "dataset": _dataset(name, corpora.get(name)),
                "metrics": metrics,
            }


def _dataset(task: str, corpus: dict[str, Any] | None) -> dict[str, str]:
    if corpus is None:
        return {"type": task, "name": task}
    origin = corpus.get("origin", {})
    found = {
        "type": origin.get("dataset", corpus["name"]),
        "name": f"{corpus['name']} ({corpus['genre']}), held out",
    }
    return found | ({"revision": origin["commit"]} if "commit" in origin else {})


def _number(key: str, value: float | None) -> dict[str, float]:
    """The entry, if there is a number: NaN is null in a manifest that was read from a file."""
    return {} if value is None or not math.isfinite(value) else {key: value}
