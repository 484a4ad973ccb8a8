"""Tables for a pipe: nothing is cut, and who reads no more ends the command as shells expect."""

import os

import pytest
from rich.table import Table

from mesh import terminal


def table_of(rows: int) -> Table:
    table = Table("A", "B", box=None)
    for number in range(rows):
        table.add_row(str(number), "word " * 60)
    return table


def test_nothing_is_cut_where_there_is_no_terminal(capsys):
    terminal.console().print(table_of(1))
    assert ("word " * 60).strip() in capsys.readouterr().out


def test_it_is_no_business_of_rich_that_nobody_reads_any_more(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        with pytest.raises(BrokenPipeError):
            terminal.console().print(table_of(10_000))
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), pipe.fileno())  # for what is left of it
