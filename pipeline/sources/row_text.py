"""The text of a row, and whether the row is wanted: column names, Jinja templates, expressions.

Templates come from recipes, which people pass around: they run in Jinja's sandbox.
"""

from __future__ import annotations

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipeline.errors import InputError
from pipeline.recipe.texts import Corpus
from pipeline.sources.rows import Row

# What an expression over a row can raise when the row is not what it expects.
EVALUATION_ERRORS = (TemplateError, TypeError, ValueError, LookupError, ArithmeticError)


class RowText:
    """Makes the text of a corpus from its rows.

    Raises:
        InputError: the corpus's `text` is not a valid template.
    """

    def __init__(self, corpus: Corpus) -> None:
        self._where = f"corpus {corpus.name}, text"
        self._column = corpus.text
        self._template = None
        if "{{" in corpus.text or "{%" in corpus.text:
            try:
                self._template = _environment().from_string(corpus.text)
            except TemplateError as error:
                raise InputError(
                    f"this is not a Jinja template: {error}", where=self._where
                ) from error

    def __call__(self, row: Row) -> str:
        """Return the text of a row; it is empty if the column holds nothing."""
        if self._template is not None:
            try:
                return self._template.render(row)
            except EVALUATION_ERRORS as error:
                raise _failed(error, row, self._where) from error
        if self._column not in row:
            raise InputError(
                f"there is no column {self._column!r}", where=self._where, remedy=_columns(row)
            )
        value = row[self._column]
        if value is None:
            return ""
        if not isinstance(value, str):
            column = f"{self._column} | join(' ')" if isinstance(value, list) else self._column
            raise InputError(
                f"column {self._column!r} holds {type(value).__name__}, not text",
                where=self._where,
                remedy=f"make text of it with a template, such as `{{{{ {column} }}}}`",
            )
        return value


class RowFilter:
    """Decides by the corpus's `where` whether a row is read.

    Raises:
        InputError: `where` is not a valid Jinja expression.
    """

    def __init__(self, corpus: Corpus) -> None:
        self._where = f"corpus {corpus.name}, where"
        self._expression = None
        if corpus.where is not None:
            try:
                self._expression = _environment().compile_expression(
                    corpus.where, undefined_to_none=False
                )
            except TemplateError as error:
                raise InputError(
                    f"this is not a Jinja expression: {error}", where=self._where
                ) from error

    def __call__(self, row: Row) -> bool:
        """Return whether the row is wanted."""
        if self._expression is None:
            return True
        try:
            return bool(self._expression(row))
        except EVALUATION_ERRORS as error:
            raise _failed(error, row, self._where) from error


def _environment() -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)


def _failed(error: Exception, row: Row, where: str) -> InputError:
    return InputError(f"it fails on a row: {error}", where=where, remedy=_columns(row))


def _columns(row: Row) -> str:
    return f"columns are: {', '.join(map(str, row))}"
