"""The table of journal entries against a plain dictionary."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinkd.core.entries import EntryTable

actions = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 2**63), st.integers(1, 2**31), st.integers(0, 2**28)),
        st.tuples(st.just("truncate"), st.integers(0, 30)),
        st.tuples(st.just("forget"), st.integers(0, 30)),
    ),
    max_size=60,
)


@given(st.integers(1, 10), actions)
def test_any_order_of_changes(first_index, changes):
    table, model, following = EntryTable(first_index), {}, first_index
    for action, *arguments in changes:
        if action == "append":
            term, file, slot = arguments
            table.append(term, file, slot * 8, slot % 1000)
            model[following] = (term, (file, slot * 8), slot % 1000)
            following += 1
        elif action == "truncate" and arguments[0] <= following:
            table.truncate(arguments[0])
            model = {index: entry for index, entry in model.items() if index < arguments[0]}
            following = arguments[0]
        elif action == "forget" and arguments[0] < following:
            table.forget(arguments[0])
            model = {index: entry for index, entry in model.items() if index >= arguments[0]}
        assert len(table) == len(model)
        assert table.next_index == following
        for index, entry in model.items():
            assert (table.term(index), table.place(index), table.length(index)) == entry
        for index in (table.first_index - 1, following):
            with pytest.raises(IndexError, match=f"entry {index}: "):
                table.term(index)


def test_entries_before_the_first_stand_in_no_file():
    table = EntryTable(10)
    table.append(5, 1, 96, 7)
    table.prepend(4, 1)
    assert (table.first_index, table.term(9), table.place(9)) == (9, 4, (0, 0))
    assert table.place(10) == (1, 96)
