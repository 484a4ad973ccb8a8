"""The `mesh` command line: options are read here, commands are in `mesh.commands` and `mesh.daemon`.

Global options may stand before or after the subcommand; the later one counts, then the environment (names of the `nats`
command), then the default. What a person did wrong ends with one line on stderr; a traceback is a bug of ours.

Exit status: 0, 1 (it failed), 2 (the command line is wrong), 130 (Ctrl-C), 141 (nobody reads the output any more).
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
from click.shell_completion import get_completion_class

from mesh.cli_certs import certs
from mesh.cli_contracts import contracts
from mesh.cli_coverage import coverage
from mesh.cli_options import Command, Parsed, client_settings, global_options, header, pattern, publishable, wants_json
from mesh.cli_running import body_of, load, load_client, os_error, run
from mesh.cli_zones import zones
from mesh.commands.failure import Failure
from mesh.settings import (
    LOG_FORMATS,
    LOG_LEVELS,
    UpOptions,
    data_plane,
    program_version,
    python_version,
)
from protocol.config_units import Address, parse_duration, parse_size
from protocol.errors import MeshError

EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it
EXIT_BROKEN_PIPE: Final = 141  # 128 + SIGPIPE


# -- the commands -----------------------------------------------------------------------------------------------------


def _version_text() -> str:
    return f"mesh {program_version()}, {python_version()}, data plane: {data_plane()}"


def _print_version(context: click.Context, option: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        click.echo(_version_text())
        context.exit()


class _Group(click.Group):
    """Ends as shells expect when it is interrupted or nobody reads the output; click would end with 1."""

    def invoke(self, context: click.Context) -> Any:
        try:
            result = super().invoke(context)
            sys.stdout.flush()
            return result
        except KeyboardInterrupt as error:
            if sys.stderr.isatty():
                click.echo(err=True)  # behind the ^C
            raise click.exceptions.Exit(EXIT_INTERRUPTED) from error
        except BrokenPipeError as error:
            # The interpreter flushes stdout once more when it ends; there is nobody to flush to.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.exceptions.Exit(EXIT_BROKEN_PIPE) from error


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Global options may stand behind COMMAND too.",
)
@global_options(on_group=True)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show it.")
def cli() -> None:
    """Event Mesh: NATS clients in, a durable log, history out by offset and time."""


@cli.command()
@global_options(on_group=False)
@click.pass_context
def version(context: click.Context) -> None:
    """Show version, Python and data plane."""
    if wants_json(context):
        fields = {"version": program_version(), "python": python_version(), "data_plane": data_plane()}
        _print_json(fields)
    else:
        click.echo(_version_text())


def _print_json(fields: dict[str, Any]) -> None:
    click.echo(json.dumps(fields))


# -- daemons ----------------------------------------------------------------------------------------------------------


def _log_options(command: Command) -> Command:
    level = click.option("--log-level", type=click.Choice(LOG_LEVELS), default="info", show_default=True)
    form = click.option("--log-format", type=click.Choice(LOG_FORMATS), default="text", show_default=True)
    return level(form(command))


def _node_options(command: Command) -> Command:
    config = click.option("--config", required=True, metavar="FILE", help="The mesh's TOML file.")
    node = click.option("--node", required=True, metavar="NAME", help="Which node of it this is.")
    return config(node(_log_options(command)))


def _worker(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    return int(number), int(count)


_TOP_MS_MIN: Final = 100  # between two looks; nobody sees more
_ADDRESS: Final = Parsed("HOST:PORT", lambda text: str(Address.parse(text)))


def _stream(text: str) -> tuple[str, tuple[str, ...]]:
    name, equals, patterns = text.partition("=")
    listed = tuple(pattern.strip() for pattern in patterns.split(","))
    if not (name and equals and all(listed)):
        raise ValueError(f"must be NAME=SUBJECTS such as 'orders=orders.>,returns.*', got {text!r}")
    return name, listed


@cli.command()
@global_options(on_group=False)
@click.option("--client", type=_ADDRESS, default="127.0.0.1:4222", show_default=True, help="For NATS clients.")
@click.option("--monitor", type=_ADDRESS, default="127.0.0.1:8222", show_default=True, help="For monitoring.")
@click.option("--data", default="mesh-data", show_default=True, metavar="DIR", help="Where the log is kept.")
@click.option(
    "--mode",
    type=click.Choice(["event-sinks", "delivery-fabric"]),
    default="event-sinks",
    show_default=True,
    help="Keep everything, or nothing.",
)
@click.option(
    "--stream",
    "streams",
    multiple=True,
    type=Parsed("stream", _stream),
    metavar="NAME=SUBJECTS",
    help="A stream beside the catch-all; several subjects with commas. May be repeated.",
)
@click.option(
    "--disk-reserve",
    type=Parsed("size", parse_size),
    metavar="SIZE",
    help="Free space below which nothing more is kept. [1GiB]",
)
@click.option(
    "--contracts",
    type=click.Choice(["off", "warn", "enforce"]),
    default="off",
    show_default=True,
    help="What happens to events that break their contract.",
)
@click.option(
    "--buffer",
    type=Parsed("size", parse_size),
    default=0,
    metavar="SIZE",
    help="Memory for the latest events, with --mode delivery-fabric. [0]",
)
@_log_options
@click.pass_context
def up(context: click.Context, /, streams: tuple[tuple[str, tuple[str, ...]], ...], **given: Any) -> None:
    """Run a gateway and a sink in this process, without configuration."""
    load("structlog", without="rich")  # which makes tracebacks in frames of it
    from mesh.daemon import run_up

    names = [name for name, _ in streams]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise click.UsageError(f"--stream {twice} is given twice: list its subjects with commas")
    options = UpOptions(
        client=given["client"],
        monitor=given["monitor"],
        data=given["data"],
        mode=given["mode"],
        streams=dict(streams),
        disk_reserve_bytes=given["disk_reserve"],
        contracts=given["contracts"],
        buffer_bytes=given["buffer"],
        log_level=given["log_level"],
        log_format=given["log_format"],
        json=wants_json(context),
    )
    context.exit(_daemon(lambda: run_up(options)))


@cli.command()
@global_options(on_group=False)
@_node_options
@click.option("--worker", hidden=True, type=Parsed("worker", _worker), help="Of a supervisor: N/COUNT.")
@click.option("--run-dir", hidden=True, help="Of a supervisor: where the sockets are.")
@click.pass_context
def gateway(
    context: click.Context,
    config: str,
    node: str,
    log_level: str,
    log_format: str,
    worker: tuple[int, int] | None,
    run_dir: str | None,
) -> None:
    """Run one gateway of a configured mesh."""
    load("structlog", without="rich")
    from mesh import daemon, logs

    if worker is None or run_dir is None:
        logs.configure(log_level, log_format)
        context.exit(_daemon(lambda: daemon.run_gateway(config, node)))
    from mesh import worker_process

    logs.configure(log_level, log_format, worker=worker[0])
    context.exit(worker_process.run(node, *worker, run_dir))


@cli.command()
@global_options(on_group=False)
@_node_options
@click.pass_context
def sinkd(context: click.Context, config: str, node: str, log_level: str, log_format: str) -> None:
    """Run one sink of a configured mesh."""
    load("structlog", without="rich")
    from mesh import daemon, logs

    logs.configure(log_level, log_format)
    context.exit(_daemon(lambda: daemon.run_sinkd(config, node)))


def _daemon(run: Callable[[], int]) -> int:
    try:
        return run()
    except BrokenPipeError:
        raise
    except (MeshError, ValueError) as error:
        raise Failure(str(error)) from error
    except OSError as error:
        raise Failure(os_error(error)) from error


# -- events -----------------------------------------------------------------------------------------------------------


@cli.command()
@global_options(on_group=False)
@click.argument("subject", type=Parsed("subject", publishable))
@click.argument("body", required=False)
@click.option("--lines", metavar="FILE", help="Publish each line of FILE (- for stdin) as an event.")
@click.option(
    "-H", "--header", "headers", multiple=True, type=Parsed("header", header), metavar="'NAME: VALUE'",
    help="May be repeated.",
)  # fmt: skip
@click.option("--count", type=click.IntRange(min=1), default=1, metavar="N", help="Publish the same N times.")
@click.option("--ack/--no-ack", default=True, help="Wait until the log has it (default), or do not ask.")
@click.pass_context
def pub(
    context: click.Context,
    subject: str,
    body: str | None,
    lines: str | None,
    headers: tuple[tuple[str, str], ...],
    count: int,
    ack: bool,
) -> None:
    """Publish an event. Without BODY, or with -, stdin is the body.

    It is acknowledged once it is safely in the log, and sent again until it is; it will be there once.
    """
    load_client(context)
    from mesh.commands import publish

    if lines is not None and (body is not None or count > 1):
        raise click.UsageError("--lines takes the events from a file: BODY and --count have no place beside it")
    if any(name.lower() == "nats-msg-id" for name, _ in headers) and (lines is not None or count > 1):
        raise click.UsageError("one Nats-Msg-Id for several events: only the first would be kept")
    options = publish.PublishOptions(
        subject=subject,
        body=b"" if lines is not None else body_of(body),
        lines=lines,
        headers=headers,
        count=count,
        acknowledged=ack,
        json=wants_json(context),
    )
    run(publish.run(client_settings(context), options))


@cli.command()
@global_options(on_group=False)
@click.argument("subject", type=Parsed("subject", pattern))
@click.option("--queue", default="", metavar="NAME", help="Share the events with others of this queue group.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="Stop after N events.")
@click.option("--raw", is_flag=True, help="Payloads alone, a line feed behind each.")
@click.pass_context
def sub(context: click.Context, subject: str, queue: str, count: int | None, raw: bool) -> None:
    """Show live events as they come, until Ctrl-C."""
    load_client(context)
    from mesh.commands import subscribe

    if any(character.isspace() for character in queue):
        raise click.UsageError(f"--queue {queue!r}: a name without blanks is needed")
    run(subscribe.run(client_settings(context), subject, queue, count, _form(context, raw)))


def _form(context: click.Context, raw: bool) -> Any:
    if raw and wants_json(context):
        raise click.UsageError("--raw and --json exclude each other")
    return "raw" if raw else "json" if wants_json(context) else "human"


def _position(text: str) -> Any:
    from mesh.positions import parse_position

    return parse_position(text, time.time_ns() // 1_000_000)


@cli.command()
@global_options(on_group=False)
@click.argument("stream")
@click.option(
    "--from", "start", type=Parsed("place", _position), default="earliest", show_default=True, metavar="PLACE"
)
@click.option("--until", type=Parsed("place", _position), default="latest", show_default=True, metavar="PLACE")
@click.option("--partition", type=click.IntRange(min=0), metavar="N", help="Only this one.")
@click.option("--filter", type=Parsed("subject", pattern), metavar="SUBJECT", help="Only events on this subject.")
@click.option("--follow", is_flag=True, help="Go on with new events, until Ctrl-C.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="Stop after N events.")
@click.option("--raw", is_flag=True, help="Payloads alone, a line feed behind each.")
@click.pass_context
def replay(context: click.Context, /, stream: str, until: Any, follow: bool, raw: bool, **given: Any) -> None:
    """Show what STREAM (or STREAM@ZONE) holds, in the order of the log.

    PLACE is earliest, latest, an offset, a time like 2026-11-25T01:00:00Z, 10m (ago), or @MILLISECONDS since 1970.
    --from is included, --until is not. Partitions are shown one after the other, with --follow as events come.
    """
    load_client(context)
    from mesh.commands import replay as replaying

    if follow and context.get_parameter_source("until") != click.core.ParameterSource.DEFAULT:
        raise click.UsageError("--follow goes on for ever: --until has no place beside it")
    options = replaying.ReplayOptions(stream=stream, until=until, follow=follow, form=_form(context, raw), **given)
    run(replaying.run(client_settings(context), options))


@cli.command()
@global_options(on_group=False)
@click.argument("stream", required=False)
@click.pass_context
def streams(context: click.Context, stream: str | None) -> None:
    """Show which streams there are, and what they hold."""
    load_client(context)
    from mesh.commands import streams as showing

    run(showing.run(client_settings(context), stream, wants_json(context)))


@cli.command()
@global_options(on_group=False)
@click.argument("stream")
@click.pass_context
def gaps(context: click.Context, stream: str) -> None:
    """Show what a log says that it lacks, as `orders`, `orders@eu`, or `orders@*` for every zone's."""
    load_client(context)
    from mesh.commands import gaps as showing

    run(showing.run(client_settings(context), stream, wants_json(context)))


# -- the sinks themselves ---------------------------------------------------------------------------------------------


def _zone_options(command: Command) -> Command:
    command = click.option("--zone", metavar="ZONE", help="Which, if there are several.")(command)
    return click.option("--config", required=True, metavar="FILE", help="The mesh's configuration.")(command)


def _zone(context: click.Context, file: str, zone: str | None) -> Any:
    from mesh.commands.sinks import Zone
    from protocol import config

    text = Path(file).read_text("utf-8", "surrogateescape")
    return Zone(config.parse(text, file), zone, client_settings(context).timeout_ms / 1000)


@cli.command()
@global_options(on_group=False)
@_zone_options
@click.pass_context
def status(context: click.Context, config: str, zone: str | None) -> None:
    """Show how the sinks of a zone are: who leads, who lags, what is wrong. Exit status 1 if anything is."""
    from mesh.commands import sinks as asking

    async def show() -> None:
        await asking.status(_zone(context, config, zone), wants_json(context))

    run(show())


@cli.command()
@global_options(on_group=False)
@click.option("--config", metavar="FILE", help="The mesh's configuration: all of its nodes.")
@click.option(
    "--monitor", type=_ADDRESS, default="127.0.0.1:8222", show_default=True, help="Without --config: one gateway."
)
@click.option(
    "--interval", type=Parsed("duration", parse_duration), default="1s", show_default=True, metavar="TIME",
    help="Between two looks.",
)  # fmt: skip
@click.option("--once", is_flag=True, help="Show it once, and end.")
@click.pass_context
def top(context: click.Context, /, config: str | None, monitor: str, interval: int, once: bool) -> None:
    """Watch gateways, links, sinks and logs, until Ctrl-C. With --json a line for each look."""
    from mesh.commands import top as watching

    async def watch() -> None:
        watched = watching.watched(config, monitor, client_settings(context).timeout_ms / 1000)
        await watching.run(watched, max(interval, _TOP_MS_MIN) / 1000, once=once, as_json=wants_json(context))

    run(watch())


@cli.command()
@global_options(on_group=False)
@click.option(
    "--ready/--live", default=True, show_default=True, help="Serves, and lacks nothing; or its process answers."
)
@click.option("--config", metavar="FILE", help="The mesh's configuration, for --node.")
@click.option("--node", metavar="NAME", help="Which node of it.")
@click.option(
    "--monitor", type=_ADDRESS, default="127.0.0.1:8222", show_default=True, help="Without --config: that node."
)
@click.pass_context
def health(context: click.Context, ready: bool, config: str | None, node: str | None, monitor: str) -> None:
    """Say whether one node is ready (or lives), for what watches processes. Exit status 1 if not."""
    from mesh.commands import health as asking

    if (config is None) != (node is None):
        raise click.UsageError("--config and --node belong together: give both or none")
    timeout_s = client_settings(context).timeout_ms / 1000
    try:
        if config is not None and node is not None:
            asked = asking.node_of(config, node, timeout_s)
        else:
            asked = asking.Node(Address.parse(monitor), "", {}, timeout_s)
        click.echo(asked.ready() if ready else asked.live())
    except MeshError as error:
        raise Failure(str(error)) from error
    except OSError as error:
        raise Failure(os_error(error)) from error


@cli.group()
def sinks() -> None:
    """Change which sinks are members of a zone's Raft groups, and which one leads."""


@sinks.command("add")
@global_options(on_group=False)
@click.argument("sink")
@_zone_options
@click.pass_context
def sinks_add(context: click.Context, sink: str, config: str, zone: str | None) -> None:
    """Make SINK, which is up and filled, a member."""
    _change_sinks(context, config, zone, sink, "")


@sinks.command("remove")
@global_options(on_group=False)
@click.argument("sink")
@_zone_options
@click.pass_context
def sinks_remove(context: click.Context, sink: str, config: str, zone: str | None) -> None:
    """SINK is no member any more."""
    _change_sinks(context, config, zone, "", sink)


@sinks.command("replace")
@global_options(on_group=False)
@click.argument("old")
@click.argument("new")
@_zone_options
@click.pass_context
def sinks_replace(context: click.Context, old: str, new: str, config: str, zone: str | None) -> None:
    """Make NEW a member, then OLD none."""
    _change_sinks(context, config, zone, new, old)


@sinks.command("lead")
@global_options(on_group=False)
@click.argument("sink")
@_zone_options
@click.option("--group", type=click.IntRange(min=0), help="Of this Raft group alone; else of all of the zone.")
@click.pass_context
def sinks_lead(context: click.Context, sink: str, config: str, zone: str | None, group: int | None) -> None:
    """Let SINK lead."""
    from mesh.commands import sinks as asking

    async def lead() -> None:
        await asking.lead(_zone(context, config, zone), sink, group)

    run(lead())


def _change_sinks(context: click.Context, file: str, zone: str | None, add: str, remove: str) -> None:
    from mesh.commands import sinks as asking

    async def change() -> None:
        await asking.change(_zone(context, file, zone), add, remove)

    run(change())


@cli.command()
@global_options(on_group=False)
@_zone_options
@click.argument("log", required=False, metavar="[LOG")
@click.argument("partition", required=False, type=click.IntRange(min=0), metavar="PARTITION]")
@click.option("--group", type=click.IntRange(min=0), metavar="NUMBER", help="Which Raft group, if there are several.")
@click.option("--accept-loss", is_flag=True, help="What only lost disks held is lost. The only way there is.")
@click.option("--gone", multiple=True, metavar="SINK", help="This member will never come back. May be repeated.")
@click.option("--yes", is_flag=True, help="Do it; else it is only said what would be done.")
@click.pass_context
def repair(
    context: click.Context,
    config: str,
    zone: str | None,
    log: str | None,
    partition: int | None,
    group: int | None,
    accept_loss: bool,
    gone: tuple[str, ...],
    yes: bool,
) -> None:
    """Have a group that has lost too many disks go on with what one sink holds.

    Or have readers of a LOG (a stream, a mirror) pass over what the disks of all sinks have spoilt of a PARTITION.
    """
    from mesh.commands import giving_up
    from mesh.commands import repair as repairing

    if not accept_loss:
        raise click.UsageError("say --accept-loss: there is no repair that loses nothing")

    if log is not None and (partition is None or group is not None or gone):
        raise click.UsageError("of a log say which partition, and neither --group nor --gone")

    async def go_on() -> None:
        if log is None:
            await repairing.run(_zone(context, config, zone), group, gone, yes=yes)
        else:
            await giving_up.run(_zone(context, config, zone), log, partition or 0, yes=yes, as_json=wants_json(context))

    run(go_on())


@cli.command()
@global_options(on_group=False)
@_zone_options
@click.argument("sinks", nargs=-1, metavar="[SINK...]")
@click.pass_context
def scrub(context: click.Context, config: str, zone: str | None, sinks: tuple[str, ...]) -> None:
    """Have sinks (all, or these) read their old segments again, and make whole what their disks have spoilt.

    Exit status 1 if anything is still damaged afterwards.
    """
    from mesh.commands import scrub as scrubbing

    async def go() -> None:
        await scrubbing.run(_zone(context, config, zone), sinks, wants_json(context))

    run(go())


# -- without a server -------------------------------------------------------------------------------------------------


@cli.command()
@global_options(on_group=False)
@click.argument("file")
@click.pass_context
def check(context: click.Context, file: str) -> None:
    """Check a configuration, and say all that is wrong with it."""
    from mesh.commands import check as checking

    context.exit(checking.run(file, wants_json(context)))


cli.add_command(certs)
cli.add_command(contracts)
cli.add_command(coverage)
cli.add_command(zones)


@cli.group("config")
def configs() -> None:
    """Make configurations."""


@configs.command("import")
@click.argument("file")
@click.option("-o", "--output", metavar="FILE", help="Write it there, not to stdout.")
@click.pass_context
def config_import(context: click.Context, file: str, output: str | None) -> None:
    """Make a mesh.toml of FILE, a nats-server's configuration."""
    from mesh.commands import config_import as importing

    context.exit(importing.run(file, output))


@cli.command()
@global_options(on_group=False)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes SHELL complete `mesh` commands.

    bash: eval "$(mesh completion bash)", zsh: eval "$(mesh completion zsh)", fish: mesh completion fish | source
    """
    kind = get_completion_class(shell)
    assert kind is not None, shell
    click.echo(kind(cli, {}, "mesh", "_MESH_COMPLETE").source())


# -- entry points -----------------------------------------------------------------------------------------------------


def main() -> None:
    """The console script `mesh`."""
    sys.exit(_main(cli, "mesh"))


def gateway_main() -> None:
    """The console script `gateway`: `mesh gateway`; by the name `nats-server` it takes that one's command line."""
    if os.path.basename(sys.argv[0]) == "nats-server":
        load("structlog", without="rich")
        from mesh.nats_server import nats_server_main

        nats_server_main()
    sys.exit(_main(gateway, "gateway"))


def sinkd_main() -> None:
    """The console script `sinkd`: `mesh sinkd`."""
    sys.exit(_main(sinkd, "sinkd"))


def _main(command: click.Command, name: str) -> int:
    """Exit status of `command` with the arguments of this process."""
    try:
        status = command.main(prog_name=name, standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return EXIT_INTERRUPTED
