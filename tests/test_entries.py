"""The table of journal entries, and the commands that were added last, against plain dictionaries."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinkd.core.entries import COMMAND_OVERHEAD_BYTES, EntryTable, RecentCommands

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


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(0, 600)),
            st.tuples(st.sampled_from(["truncate", "forget"]), st.integers(0, 40)),
        ),
        max_size=80,
    )
)
def test_recent_commands_are_the_last_ones_that_fit(changes):
    recent, model, following = RecentCommands(1000), {}, 1
    for action, number in changes:
        if action == "append":
            recent.append(following, bytes(number))
            model[following] = bytes(number)
            following += 1
            while sum(len(command) + COMMAND_OVERHEAD_BYTES for command in model.values()) > 1000:
                del model[min(model)]
        elif action == "truncate":
            recent.truncate(number)
            model = {index: command for index, command in model.items() if index < number}
            following = min(following, number)
        else:
            recent.forget(number)
            model = {index: command for index, command in model.items() if index >= number}
        assert {index: recent.get(index) for index in range(-1, 100) if recent.get(index) is not None} == model
        assert len(recent) == len(model)
        assert recent.size_bytes == sum(len(command) + COMMAND_OVERHEAD_BYTES for command in model.values())


def test_a_command_that_is_too_large_is_not_kept():
    recent = RecentCommands(1000)
    recent.append(1, b"small")
    recent.append(2, bytes(1000))
    assert (len(recent), recent.size_bytes) == (0, 0)
    recent.append(3, b"next")
    assert recent.get(3) == b"next"
