"""Logs in nats-server's form."""

import logging
import os
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import structlog

from mesh import nats_server_log as logs

NOW = datetime(2026, 11, 25, 4, 0, 0, 123456)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    structlog.reset_defaults()
    root.setLevel(level)
    root.handlers[:] = handlers


def _lines(with_time: bool = True, colors: bool = False) -> logs.Lines:
    return logs.Lines(with_time=with_time, utc=False, colors=colors, now=lambda: NOW)


def test_it_moves_to_another_file_or_stays_where_it_is(tmp_path: Path) -> None:
    output = logs.Output(str(tmp_path / "one"))
    output.write("a")
    output.move(str(tmp_path / "two"))
    output.write("b")
    with pytest.raises(OSError, match="No such file or directory"):
        output.move(str(tmp_path / "none" / "three"))
    output.write("c")
    output.close()
    assert [(tmp_path / name).read_text() for name in ("one", "two")] == ["a", "bc"]


def test_a_line_has_process_time_and_level() -> None:
    assert (
        _lines().line("info", "Server is ready") == f"[{os.getpid()}] 2026/11/25 04:00:00.123456 [INF] Server is ready"
    )
    assert _lines(with_time=False).line("warning", "x") == f"[{os.getpid()}] [WRN] x"
    assert _lines(colors=True).line("error", "x").endswith("[\x1b[31mERR\x1b[0m] x")


def test_events_of_the_daemon_are_written_with_their_fields(tmp_path: Path) -> None:
    output = logs.Output(str(tmp_path / "log"))
    logs.configure(output, _lines(with_time=False), debug=False)
    log = structlog.get_logger()

    log.info("stopping", signal="SIGTERM")
    log.warning("slow_consumer", connection=5, name="a b")
    log.debug("not shown")
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("bug")
    logging.getLogger("library").warning("careful %s", "now")
    output.close()

    pid = f"[{os.getpid()}]"
    written = (tmp_path / "log").read_text().splitlines()
    assert written[:3] == [
        f'{pid} [INF] Trapped "terminated" signal',
        f"{pid} [INF] Initiating Shutdown...",
        f"{pid} [WRN] slow_consumer connection=5 name='a b'",
    ]
    assert written[3] == f"{pid} [ERR] bug"
    assert f"{pid} [ERR] ValueError: why" in written
    assert written[-1] == f"{pid} [WRN] library: careful now"


def test_a_file_can_be_moved_away_and_opened_again(tmp_path: Path) -> None:
    output = logs.Output(str(tmp_path / "log"))
    output.write("before\n")
    output.flush()
    (tmp_path / "log").rename(tmp_path / "old")

    assert output.reopen()
    output.write("after\n")
    output.close()

    assert (tmp_path / "old").read_text() == "before\n"
    assert (tmp_path / "log").read_text() == "after\n"


def test_a_large_file_is_renamed_and_the_oldest_go(tmp_path: Path) -> None:
    output = logs.Output(str(tmp_path / "log"), size_bytes_max=20, files_max=3)
    for number in range(10):
        output.write(f"line {number} of the log\n")
    output.close()

    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 3
    assert names[0] == "log"
    assert all(re.fullmatch(r"log(\.\d{4}(\.\d\d){5}\.\d{9})?", name) for name in names)
    assert (tmp_path / names[-1]).read_text().endswith("line 9 of the log\n")


def test_stderr_has_no_file_to_open() -> None:
    assert not logs.Output().reopen()
