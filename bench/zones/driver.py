"""Runs rows about copies between zones: rounds that alternate, data in a folder that goes at the end."""

from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from bench.processes import BenchError, UnavailableError
from bench.report import Result
from bench.zones import report
from bench.zones.rows import Row, turn


def measure(console: Console, row: Row, rounds: int, folder: Path, result: Result) -> bool:
    """All rounds of a row, data below `folder`; False: a run did not count."""
    good = True
    for number in range(rounds):
        for kind in row.contenders if number % 2 == 0 else reversed(row.contenders):
            if kind.name in result.missing:
                continue
            try:
                with TemporaryDirectory(prefix="bench-", dir=folder) as data:
                    result.add(kind.name, turn(kind, row, Path(data)))
            except BenchError as error:
                result.missing[kind.name] = " ".join(str(error).replace("|", "/").split())[:200]
                good &= isinstance(error, UnavailableError)
                console.print(f"{row.key}: {kind.name}: {error}", markup=False, style="yellow")
        for line in report.lines(row, result):
            figures = " | ".join(filter(None, (line.ours, line.theirs, line.compressed, line.relay)))
            console.print(f"{number + 1}/{rounds} {line.work}: {figures}", markup=False)
    return good
