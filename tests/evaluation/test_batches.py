from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.batches import Request, batches_of, rows_of, tokens_read

tokens = st.lists(st.integers(0, 3), min_size=1, max_size=30).map(tuple)
requests = st.lists(st.builds(Request, tokens, tokens), min_size=1, max_size=30)


@given(requests, st.booleans(), st.integers(10, 70))
def test_rows_spell_out_what_the_requests_read(
    asked: list[Request], share: bool, longest: int
) -> None:
    rows = rows_of(asked, longest=longest, share=share)
    assert sorted(i for row in rows for i in row.requests) == list(range(len(asked)))
    for row in rows:
        for index in row.requests:
            whole = asked[index].context + asked[index].continuation
            assert row.prefix + row.suffix == whole[-(longest + 1) :][:-1]
            if len(whole) <= longest + 1:
                assert len(asked[index].continuation) <= row.scored <= len(row.suffix)
        assert share or not row.prefix


@given(requests, st.integers(1, 300))
def test_batches_hold_every_row_once_within_the_budget(asked: list[Request], budget: int) -> None:
    rows = rows_of(asked, longest=100, share=True)
    batches = list(batches_of(rows, budget))
    assert sorted(map(hash, rows)) == sorted(hash(row) for batch in batches for row in batch)
    for batch in batches:
        width = max(len(row.prefix) + len(row.suffix) for row in batch)
        assert len(batch) == 1 or len(batch) * width <= budget
        assert len({len(row.prefix) for row in batch}) == 1
        assert tokens_read(batch) <= len(batch) * width


def test_choices_share_their_context_and_equal_inputs_are_read_once() -> None:
    context = (1, 2, 3, 4, 5, 6)
    one_token = [Request(context, (7,)), Request(context, (8,))]
    assert len(rows_of(one_token, longest=50, share=True)) == 1
    longer = [Request(context, (7, 7)), Request(context, (8, 8, 8))]
    rows = rows_of(longer, longest=50, share=True)
    assert {row.prefix for row in rows} == {context[:-1]}
    assert tokens_read(rows) == 5 + 2 + 3
