"""`python -m bench`: measures, prints the table, writes the page."""

import datetime
import fnmatch
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from rich.console import Console

from bench import report
from bench.report import Result
from bench.rows import Row, rows
from bench.servers import (
    BenchError,
    Gateway,
    NatsServer,
    Relay,
    Server,
    UnavailableError,
    version_of_gateway,
    version_of_nats_server,
)
from bench.standing import allow_many_files

CONTENDERS: tuple[type[Server], ...] = (Gateway, NatsServer, Relay)


@click.command()
@click.option("--rows", "pattern", default="*", help="Patterns of rows' keys: '1to1*,tls'.")
@click.option("--rounds", default=5, type=click.IntRange(1), help="Turns of each server.")
@click.option("--seconds", default=1.0, type=click.FloatRange(0, min_open=True), help="Length of one turn.")
@click.option("--write", type=click.Path(dir_okay=False, path_type=Path), help="Keep the results and write this page.")
@click.option(
    "--results", default=report.RESULTS, type=click.Path(dir_okay=False, path_type=Path), help="Kept results."
)
@click.option("--list", "lists", is_flag=True, help="Print the keys of the rows.")
def main(pattern: str, rounds: int, seconds: float, write: Path | None, results: Path, lists: bool) -> None:
    """The gateway beside nats-server, in ratios."""
    chosen = [row for row in rows() if any(fnmatch.fnmatch(row.key, part) for part in pattern.split(","))]
    if not chosen:
        raise click.ClickException(f"no row matches {pattern!r}; --list shows them")
    if lists:
        for row in chosen:
            click.echo(f"{row.key:24}{row.title}")
        return
    allow_many_files()
    console = Console(width=None if sys.stdout.isatty() else 220)
    gateway, nats_server, load = version_of_gateway(), version_of_nats_server(), os.getloadavg()[0]
    console.print(f"{report.machine()}, load average {load:.1f}")
    console.print(f"{gateway}; nats-server {nats_server}; {rounds} rounds of {seconds:g} s")
    new, failed = {}, False
    for row in chosen:
        date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        result = Result(row.key, date, gateway, nats_server, seconds, load)
        failed |= not _measure(console, row, rounds, seconds, result)
        new[row.key] = result
    console.print(report.table([line for row in chosen for line in report.lines(row, new[row.key])]))
    if write is not None:
        kept = report.load(results) | new
        report.keep(kept, results)
        write.write_text(report.page(rows(), kept))
    sys.exit(1 if failed else 0)


def _measure(console: Console, row: Row, rounds: int, seconds: float, result: Result) -> bool:
    """All rounds of a row; False: a run did not count."""
    good = True
    contenders = [kind for kind in CONTENDERS if kind is not Relay or row.has_relay]
    for number in range(rounds):
        for kind in contenders if number % 2 == 0 else reversed(contenders):
            if kind.name in result.missing:
                continue
            try:
                measured = _turn(kind, row, seconds)
            except UnavailableError as error:
                result.missing[kind.name] = str(error)
                console.print(f"{row.key}: n/a: {error}", markup=False, style="yellow")
            except BenchError as error:
                result.missing[kind.name] = str(error)
                good = False
                console.print(f"{row.key}: FAILED: {error}", markup=False, style="red")
            else:
                result.add(kind.name, measured)
        if console.is_terminal or number == rounds - 1:
            for line in report.lines(row, result):
                console.print(
                    f"{number + 1}/{rounds} {line.work}: {line.ours} / {line.theirs} = {line.ratio}", markup=False
                )
    return good


def _turn(kind: type[Server], row: Row, seconds: float) -> dict[str, float]:
    with TemporaryDirectory(prefix="bench-") as folder:
        server = kind(Path(folder), row.setup)
        try:
            measured = row.run(server, seconds)
            if server.has_ended():
                raise BenchError(f"{server.name} has ended: {server.complaints()}")
            return measured
        finally:
            server.stop()


main()
