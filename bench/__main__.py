"""`python -m bench`: measures, prints the table, writes the page."""

import datetime
import fnmatch
import os
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import click
from rich.console import Console

from bench import report
from bench.mesh import report as mesh_report
from bench.mesh.rows import rows as mesh_rows
from bench.mesh.zone import Zone
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
from bench.sinks import driver
from bench.sinks import report as sink_report
from bench.sinks.rows import Row as SinkRow
from bench.sinks.rows import Settings
from bench.sinks.rows import rows as sink_rows
from bench.standing import allow_many_files
from bench.zones import driver as zones_driver
from bench.zones import report as zones_report
from bench.zones.rows import Row as ZonesRow
from bench.zones.rows import rows as zones_rows
from protocol.config_units import parse_size

CONTENDERS: tuple[type[Server], ...] = (Gateway, NatsServer, Relay)
IN_A_MESH: tuple[type[Server], ...] = (Zone, NatsServer)


@click.command()
@click.option(
    "--group", type=click.Choice(["gateway", "sinks", "mesh", "zones"]), default="gateway", help="Which rows."
)
@click.option("--rows", "pattern", default="*", help="Patterns of rows' keys: '1to1*,tls'.")
@click.option("--rounds", default=5, type=click.IntRange(1), help="Turns of each server.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="Length of one turn: 1, with sinks 5.")
@click.option("--write", type=click.Path(dir_okay=False, path_type=Path), help="Keep the results and write this page.")
@click.option(
    "--results", default=report.RESULTS, type=click.Path(dir_okay=False, path_type=Path), help="Kept results."
)
@click.option("--sinks", default=3, type=click.IntRange(1), help="With sinks: how many of ours.")
@click.option("--replicas", default=3, type=click.IntRange(1), help="With sinks: how many of theirs.")
@click.option("--history-bytes", default="256MiB", help="With sinks: payload that is read back.")
@click.option("--restart-bytes", default="1GiB", help="With sinks: payload of the large log.")
@click.option(
    "--data",
    default="/var/tmp",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="With sinks and zones: folder on a disk.",
)
@click.option("--list", "lists", is_flag=True, help="Print the keys of the rows.")
def main(
    group: str, pattern: str, rounds: int, seconds: float | None, write: Path | None, results: Path,
    sinks: int, replicas: int, history_bytes: str, restart_bytes: str, data: Path, lists: bool,
) -> None:  # fmt: skip
    """The gateway beside nats-server, sinks beside JetStream, gateways beside a cluster, or zones beside mirrors."""
    if lists:
        _list(group, pattern)
        return
    allow_many_files()
    console = Console(width=None if sys.stdout.isatty() else 220)
    if group == "sinks":
        settings = Settings(
            seconds or Settings.seconds, _bytes_of(history_bytes), _bytes_of(restart_bytes), sinks, replicas
        )
        new, good = _measure_sinks(console, pattern, rounds, settings, data)
    elif group == "zones":
        new, good = _measure_zones(console, _chosen(zones_rows(), pattern), rounds, data)
    elif group == "mesh":
        chosen = _chosen(mesh_rows(), pattern)
        new, good = _measure_servers(console, chosen, IN_A_MESH, rounds, seconds or 1.0, mesh_report.KEY_PREFIX)
    else:
        new, good = _measure_servers(console, _chosen(rows(), pattern), CONTENDERS, rounds, seconds or 1.0)
    if write is not None:
        kept = report.load(results) | new
        report.keep(kept, results)
        write.write_text(report.page(rows(), kept, _sections(kept)))
    sys.exit(0 if good else 1)


def _sections(kept: dict[str, Result]) -> str:
    return mesh_report.section(mesh_rows(), kept) + driver.section(kept) + zones_report.section(zones_rows(), kept)


def _bytes_of(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise click.ClickException(str(error)) from error


Rows = TypeVar("Rows", Row, SinkRow, ZonesRow)


def _chosen(all_rows: list[Rows], pattern: str) -> list[Rows]:
    chosen = [row for row in all_rows if any(fnmatch.fnmatch(row.key, part) for part in pattern.split(","))]
    if not chosen:
        raise click.ClickException(f"no row matches {pattern!r}; --list shows them")
    return chosen


def _list(group: str, pattern: str) -> None:
    if group == "sinks":
        shown = [(row.key, row.title) for row in _chosen(sink_rows(), pattern)]
    elif group == "zones":
        shown = [(row.key, row.title) for row in _chosen(zones_rows(), pattern)]
    else:
        shown = [(row.key, row.title) for row in _chosen(mesh_rows() if group == "mesh" else rows(), pattern)]
    for key, title in shown:
        click.echo(f"{key:24}{title}")


def _measure_servers(
    console: Console, chosen: list[Row], kinds: tuple[type[Server], ...], rounds: int, seconds: float, prefix: str = ""
) -> tuple[dict[str, Result], bool]:
    """Results by key, which `prefix` goes before; False: a run did not count."""
    new, good = {}, True
    begin = _begun(console, f"{rounds} rounds of {seconds:g} s", seconds)
    for row in chosen:
        result = begin(prefix + row.key)
        new[result.key] = result
        good &= _measure(console, row, kinds, min(rounds, row.rounds_max), seconds, result)
    console.print(report.table([line for row in chosen for line in report.lines(row, new[prefix + row.key])]))
    return new, good


def _measure_sinks(
    console: Console, pattern: str, rounds: int, settings: Settings, data: Path
) -> tuple[dict[str, Result], bool]:
    """As `_measure_gateway`, of the sink tier."""
    chosen, new, good, shown = _chosen(sink_rows(), pattern), {}, True, []
    try:
        driver.check_folder(data)
    except BenchError as error:
        raise click.ClickException(str(error)) from error
    begin = _begun(console, f"{rounds} rounds; {driver.described(settings)}", settings.seconds)
    for row in chosen:
        result = begin(sink_report.KEY_PREFIX + row.key)
        new[result.key] = result
        good &= driver.measure(console, row, rounds, settings, data, result)
        shown += sink_report.lines(row, result)
    console.print(sink_report.table(shown))
    return new, good


def _measure_zones(console: Console, chosen: list[ZonesRow], rounds: int, data: Path) -> tuple[dict[str, Result], bool]:
    """As `_measure_sinks`, of copies between zones."""
    new, good, shown = {}, True, []
    begin = _begun(console, f"{rounds} rounds", 0)
    for row in chosen:
        result = begin(zones_report.KEY_PREFIX + row.key)
        new[result.key] = result
        good &= zones_driver.measure(console, row, rounds, data, result)
        shown += zones_report.lines(row, result)
    console.print(zones_report.table(shown))
    return new, good


def _begun(console: Console, what: str, seconds: float) -> Callable[[str], Result]:
    """Says what is measured; the function makes the empty result of a row."""
    gateway, nats_server, load = version_of_gateway(), version_of_nats_server(), os.getloadavg()[0]
    console.print(f"{report.machine()}, load average {load:.1f}")
    console.print(f"{gateway}; nats-server {nats_server}; {what}")

    def begin(key: str) -> Result:
        date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        return Result(key, date, gateway, nats_server, seconds, load)

    return begin


def _measure(
    console: Console, row: Row, kinds: tuple[type[Server], ...], rounds: int, seconds: float, result: Result
) -> bool:
    """All rounds of a row; False: a run did not count."""
    good = True
    contenders = [kind for kind in kinds if kind is not Relay or row.has_relay]
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
