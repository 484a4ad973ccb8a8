"""Runs rows of the sink tier: rounds that alternate, one tier at a time, data in a folder that goes at the end."""

from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from bench.processes import BenchError, UnavailableError
from bench.report import Result
from bench.sinks import report
from bench.sinks.rows import FAILOVER_WINDOW, PATIENCE_MS, Row, Settings, rows
from bench.sinks.tiers import Tier, Zone, is_in_memory
from protocol.config_units import format_size


def measure(console: Console, row: Row, rounds: int, settings: Settings, folder: Path, result: Result) -> bool:
    """All rounds of a row, data below `folder`; False: a run did not count."""
    good = True
    result.setting = described(settings)
    for number in range(min(rounds, row.rounds_max)):
        for kind in row.contenders if number % 2 == 0 else reversed(row.contenders):
            if kind.name in result.missing:
                continue
            try:
                result.add(kind.name, _turn(kind, row, settings, folder))
            except BenchError as error:
                result.missing[kind.name] = _one_line(str(error))
                good &= isinstance(error, UnavailableError)
                console.print(f"{row.key}: {kind.name}: {error}", markup=False, style="yellow")
        for line in report.lines(row, result):
            figures = f"{line.ours} | {line.always} | {line.default}"
            console.print(f"{number + 1}/{rounds} {line.work}: {figures}", markup=False)
    return good


def _turn(kind: type[Tier], row: Row, settings: Settings, folder: Path) -> dict[str, float]:
    with TemporaryDirectory(prefix="bench-", dir=folder) as data:
        tier = kind(Path(data), settings.sinks if issubclass(kind, Zone) else settings.replicas)
        try:
            tier.start()
            return row.run(tier, settings)
        finally:
            tier.stop()


def described(settings: Settings) -> str:
    """In words, for the page."""
    tiers = f"{settings.sinks} sinks, {settings.replicas} replicas; publishing for {settings.seconds:g} s"
    return (
        f"{tiers}; history of {format_size(settings.history_bytes)}, restart with {format_size(settings.restart_bytes)}"
    )


def check_folder(folder: Path) -> None:
    """BenchError where data would lie in memory."""
    if is_in_memory(folder):
        raise BenchError(f"{folder} is in memory; name a folder on a disk with --data")


def section(results: dict[str, Result]) -> str:
    """Of docs/performance.md."""
    return report.section(rows(), results, {"window": FAILOVER_WINDOW, "patience_ms": PATIENCE_MS})


def _one_line(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:200]
