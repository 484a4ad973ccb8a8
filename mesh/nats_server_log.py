"""Logs as nats-server writes them: `[pid] 2026/11/25 04:00:00.000000 [INF] Server is ready`, on stderr or in a file.

A file can be opened again (SIGUSR1), so that others may move it away. It can also move itself away: when it is larger
than `size_bytes_max`, it is renamed after the time; with the open one, `files_max` of them stay.

The daemon logs events with fields (`structlog`); those that nats-server has a sentence for are written so, the others
as `event key=value`.

Source: nats-server `logger/log.go`.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TextIO

import structlog

from mesh.nats_config_options import Options

_LABELS: Final = {"info": "INF", "warning": "WRN", "error": "ERR", "critical": "FTL", "debug": "DBG", "trace": "TRC"}
_COLORS: Final = {"info": "32", "debug": "36", "warning": "0;93", "error": "31", "critical": "31", "trace": "33"}
_SIGNALS: Final = {"SIGINT": "interrupt", "SIGTERM": "terminated", "SIGUSR2": "user defined signal 2"}
_SENTENCES: Final = {
    "stopping": ('Trapped "{signal}" signal', "Initiating Shutdown..."),
    "retiring": ('Trapped "{signal}" signal',),
    "lame_duck_begins": ("Entering lame duck mode, stop accepting new clients",),
    "lame_duck_closes_clients": ("Closing existing clients",),
}
"""What nats-server says where the daemon logs these events."""
_FILE_MODE: Final = 0o640


class Output:
    """Where lines go: a text stream, or a file that can be opened again. Has what structlog's WriteLogger needs."""

    def __init__(self, file: str = "", size_bytes_max: int = 0, files_max: int = 0) -> None:
        """OSError: the file cannot be opened."""
        self.file, self._size_bytes_max, self._files_max = file, size_bytes_max, files_max
        self._size_bytes = 0
        self._lock = threading.Lock()  # threads log too
        self._stream: TextIO = sys.stderr
        self._open()

    @property
    def is_terminal(self) -> bool:
        return not self.file and sys.stderr.isatty()

    def write(self, text: str) -> int:
        with self._lock:
            self._stream.write(text)
            self._size_bytes += len(text)
            if 0 < self._size_bytes_max < self._size_bytes:
                self._rotate()
        return len(text)

    def flush(self) -> None:
        with self._lock:
            self._stream.flush()

    def move(self, file: str) -> None:
        """To another file, or to stderr ("") from now on. OSError: that cannot be opened, and all stays as it is."""
        with self._lock:
            if file == self.file:
                return
            before, self.file = (self.file, self._stream), file
            try:
                self._open()
            except OSError:
                self.file, self._stream = before
                raise
            if before[0]:
                before[1].close()

    def reopen(self) -> bool:
        """Whether there is a file, which is open again."""
        with self._lock:
            if self.file:
                self.close()
                self._open()
        return bool(self.file)

    def close(self) -> None:
        if self.file:
            self._stream.close()

    def _open(self) -> None:
        if not self.file:
            self._stream = sys.stderr
            return
        descriptor = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, _FILE_MODE)
        self._stream = os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace")
        self._size_bytes = os.fstat(descriptor).st_size

    def _rotate(self) -> None:
        nanoseconds = time.time_ns()
        moment = datetime.fromtimestamp(nanoseconds // 10**9)
        backup = f"{self.file}.{moment:%Y.%m.%d.%H.%M.%S}.{nanoseconds % 10**9:09d}"
        self.close()
        os.rename(self.file, backup)
        self._open()
        if self._files_max > 0:
            folder, name = Path(self.file).parent, Path(self.file).name
            backups = sorted(path for path in folder.iterdir() if path.name.startswith(f"{name}.2"))
            for old in backups[: max(0, len(backups) - (self._files_max - 1))]:
                old.unlink(missing_ok=True)


class Lines:
    """Makes lines of events; a structlog processor."""

    def __init__(self, *, with_time: bool, utc: bool, colors: bool, now: Callable[[], datetime] | None = None) -> None:
        self._with_time, self._utc, self._colors = with_time, utc, colors
        self._now = now or (lambda: datetime.now(UTC if utc else None))

    def __call__(self, logger: Any, method: str, event: structlog.types.EventDict) -> str:
        name = str(event.pop("event", ""))
        traceback = event.pop("exception", None)
        level = "error" if method == "exception" else {"warn": "warning"}.get(method, method)
        sentences = [*_sentences(name, event), *(str(traceback).splitlines() if traceback else ())]
        return "\n".join(self.line(level, sentence) for sentence in sentences)

    def line(self, level: str, text: str) -> str:
        label = _LABELS.get(level, "INF")
        shown = f"\x1b[{_COLORS[level]}m{label}\x1b[0m" if self._colors and level in _COLORS else label
        moment = f"{self._now():%Y/%m/%d %H:%M:%S.%f} " if self._with_time else ""
        return f"[{os.getpid()}] {moment}[{shown}] {text}"


def _sentences(name: str, fields: structlog.types.EventDict) -> list[str]:
    if name in _SENTENCES:
        number = str(fields.get("signal", ""))
        return [sentence.format(signal=_SIGNALS.get(number, number)) for sentence in _SENTENCES[name]]
    return [" ".join([name, *(f"{key}={_field(value)}" for key, value in fields.items())])]


def _field(value: object) -> str:
    text = str(value)
    return text if text.isprintable() and " " not in text and text else ascii(text)


def start(output: Output, options: Options) -> Lines:
    """Logs as `options` say, into `output`, from now on."""
    lines = Lines(with_time=options.logtime, utc=options.logtime_utc, colors=output.is_terminal)
    configure(output, lines, debug=options.debug)
    return lines


def configure(output: Output, lines: Lines, *, debug: bool) -> None:
    """Sends all that is logged to `output`."""
    structlog.configure(
        processors=[structlog.processors.format_exc_info, lines],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if debug else logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(output),  # type: ignore[arg-type]  # write and flush are enough
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_Handler(output, lines)], force=True)


def tracer(output: Output, lines: Lines) -> Callable[[str], None]:
    """Writes lines of the protocol's trace, which are too many to be made of events first."""

    def say(text: str) -> None:
        output.write(lines.line("trace", text) + "\n")
        output.flush()

    return say


class _Handler(logging.Handler):
    """What libraries log by the standard way."""

    def __init__(self, output: Output, lines: Lines) -> None:
        super().__init__()
        self._output, self._lines = output, lines

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.name}: {record.getMessage()}"
        self._output.write(self._lines.line(record.levelname.lower(), text) + "\n")
        self._output.flush()
