"""The gateway under the name `nats-server`: its command line, its configuration file, its log lines.

    ln -s .venv/bin/gateway nats-server && ./nats-server -c nats.conf -p 4222

What it says on stderr has nats-server's form, and is true: the version is ours, with the protocol version beside it.
Two things are not as there: a command line that cannot be read ends with status 1 (nats-server: 0), and `--signal`
wants to know which process it is for (nats-server takes any of its name that it finds).

SIGHUP takes the file anew, with the flags over it as at the start; what may change by that is in `nats_server_reload`.

Source: nats-server `main.go`, `server/opts.go` (ConfigureOptions), `server/signal.go`.
"""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from mesh import nats_config, nats_server_flags, nats_server_log, nats_server_reload
from mesh.advice import advice
from mesh.availability import not_available
from mesh.nats_config_options import Options
from mesh.nats_config_values import Findings
from mesh.settings import data_plane, program_version
from protocol import config
from protocol.errors import ConfigError, MeshError

if TYPE_CHECKING:
    from gateway.core.engine import Engine
    from gateway.shell.discovery import Cluster
    from mesh.daemon import Node

NAME: Final = "nats-server"

_SIGNALS: Final = {
    "stop": signal.SIGKILL,
    "quit": signal.SIGINT,
    "reload": signal.SIGHUP,
    "term": signal.SIGTERM,
    "reopen": signal.SIGUSR1,
    "ldm": signal.SIGUSR2,
}
log = structlog.get_logger()


class Refused(MeshError):
    """The command line asks for what cannot be done."""


def nats_server_main() -> None:
    """For a console script that was called by the name `nats-server`."""
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads the usage to its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 1 when something was wrong, said on stderr."""
    try:
        line = nats_server_flags.parse(arguments)
    except nats_server_flags.FlagError as error:
        print(error, file=sys.stderr)
        print(nats_server_flags.USAGE)
        return 1
    if (text := _asked_for(line)) is not None:
        print(text)
        return 0
    try:
        return _run(line)
    except (Refused, ConfigError) as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(_told(error))


def _told(error: OSError) -> str:
    reason = (error.strerror or str(error)).lower()
    return f"open {error.filename}: {reason}" if error.filename else reason


def _fail(text: str) -> int:
    print(f"{NAME}: {text}", file=sys.stderr)
    return 1


def _asked_for(line: nats_server_flags.CommandLine) -> str | None:
    """What is printed instead of running."""
    word = line.rest[0].lower() if line.rest else ""
    if line.last("v", "version") or (word == "version" and not line.last("h", "help", "help_tls")):
        return f"{NAME}: v{_protocol_version()} (Event Mesh {program_version()}, data plane: {data_plane()})"
    if line.last("h", "help") or (word == "help" and not line.last("help_tls")):
        return nats_server_flags.USAGE
    if line.last("help_tls"):
        return nats_server_flags.TLS_USAGE
    return None


def _protocol_version() -> str:
    from gateway.core.plane import PROTOCOL_VERSION

    return PROTOCOL_VERSION


def _run(line: nats_server_flags.CommandLine) -> int:
    if line.rest:
        raise Refused(f'unrecognized command: "{line.rest[0]}"')
    if wanted := line.last("sl", "signal"):
        send_signal(wanted)
        return 0
    findings = Findings()
    file = line.last("c", "config")
    checks_only = line.last("t", default=False)
    if checks_only and not file:
        raise Refused("must specify [-c, --config] option to check configuration file syntax")
    options = nats_config.load(file, nats_config.environment(), findings) if file else Options()
    if not checks_only:
        nats_server_flags.override(options, line, findings)
    configuration = _configuration(options, f"gw-{secrets.token_hex(8)}", findings)
    for notice in findings.notices:
        print(notice, file=sys.stderr)
    if checks_only:
        if findings.warnings:  # as in nats-server
            raise Refused("\n".join(findings.warnings))
        print(f"{NAME}: configuration file {file} is valid ({options.config_digest})", file=sys.stderr)
        return 0
    for warning in findings.warnings:
        print(warning, file=sys.stderr)
    return _serve(line, options, configuration)


def _configuration(options: Options, name: str, findings: Findings) -> config.Config:
    """ConfigError holds all that is wrong with file and flags. `name` is for one of a cluster that has none."""
    if options.cluster.port and not options.server_name:
        options.server_name = name
    tables = nats_config.tables(options, findings)
    configuration = None
    try:
        configuration = nats_config.configuration(tables)
    except ConfigError as error:
        findings.problems += error.problems
    if configuration is not None:
        findings.problems += not_available(configuration)
    findings.raise_problems()
    assert configuration is not None
    return configuration


# -- running ----------------------------------------------------------------------------------------------------------


def _serve(line: nats_server_flags.CommandLine, options: Options, configuration: config.Config) -> int:
    output = nats_server_log.Output(options.log_file, options.log_size_limit, options.log_max_files)
    with contextlib.closing(output):
        server = _Server(line, options, configuration, output)
        try:
            status = server.run()
        except (MeshError, OSError) as error:
            log.critical(str(error.strerror or error) if isinstance(error, OSError) else str(error))
            return 1
        finally:
            server.clean_up()
        log.info("Server Exiting..")
        return status


class _Server:
    """Says what happens, and writes the files that others look for."""

    def __init__(
        self,
        line: nats_server_flags.CommandLine,
        options: Options,
        configuration: config.Config,
        output: nats_server_log.Output,
    ) -> None:
        self._line, self._options, self._configuration, self._output = line, options, configuration, output
        self._lines = nats_server_log.start(output, options)
        self._ports_file: Path | None = None
        self._node: Node | None = None

    def run(self) -> int:
        from mesh import daemon

        node = next(iter(self._configuration.zones[nats_config.ZONE].gateways))
        return daemon.run_configured(
            self._configuration, node, self._engine(), self._made, self._started, self._cluster()
        )

    def _cluster(self) -> "Cluster | None":
        from gateway.shell.discovery import Cluster

        cluster = self._options.cluster
        if not cluster.port:
            return None
        return Cluster(tuple(cluster.routes), cluster.advertised(), not cluster.no_advertise)

    def _engine(self) -> "Engine":
        from gateway.core import engine, tracing

        options = self._options
        if not options.trace:
            return engine.BEST
        say = nats_server_log.tracer(self._output, self._lines)
        return tracing.traced(tracing.Trace(say, options.max_traced_msg_len, options.trace_headers))

    def clean_up(self) -> None:
        if self._ports_file is not None:
            self._ports_file.unlink(missing_ok=True)
            self._ports_file = None

    def _made(self, node: "Node") -> None:
        """There is a gateway, and it does not listen yet."""
        assert node.gateway is not None
        self._node = node
        plane, options = node.gateway.plane.options, self._options
        log.info(f"Starting {NAME}")
        log.info(
            f"  Version:  {program_version()} (Event Mesh, with the protocol of nats-server {_protocol_version()})"
        )
        traced = "reference, which traces the protocol"
        log.info(f"  Data plane: {traced if self._options.trace else data_plane()}")
        log.info(f"  Name:     {plane.server_name}")
        log.info(f"  ID:       {plane.server_id}")
        if self._has_plain_passwords():
            log.warning("Plaintext passwords detected, use nkeys or bcrypt")
        if options.config_file:
            log.info(f"Using configuration file: {options.config_file} ({options.config_digest})")
        for advised in advice(self._configuration):
            log.warning(advised)
        try:
            self._write_pid()
        except OSError as error:
            error.strerror = f"Could not write pidfile: open {options.pid_file}: {error.strerror}"
            raise
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self._reopen)
        loop.add_signal_handler(signal.SIGHUP, self._reload)

    def _write_pid(self) -> None:
        if self._options.pid_file:
            Path(self._options.pid_file).write_text(str(os.getpid()))

    def _has_plain_passwords(self) -> bool:
        clients = self._configuration.tls_clients
        if clients is not None and clients.map:
            return False
        return any(user.password and not user.password.startswith("$2") for user in self._configuration.users)

    def _started(self, node: "Node") -> None:
        assert node.clients is not None
        if node.monitored is not None:
            log.info(f"Starting http monitor on {_shown(node.monitored)}")
        log.info(f"Listening for client connections on {_shown(node.clients)}")
        clients = self._configuration.tls_clients
        if clients is not None:
            log.info(f"TLS {'available' if clients.allow_non_tls else 'required'} for client connections")
            if clients.first and not clients.first_fallback_ms:
                log.warning('Clients that are not using "TLS Handshake First" option will fail to connect')
        if (links := self._takes_links_at(node)) is not None:
            log.info(f"Cluster name is {self._configuration.mesh.name}")
            log.info(f"Listening for route connections on {_shown(links)}")
        self._write_ports(node)
        log.info("Server is ready")

    @staticmethod
    def _takes_links_at(node: "Node") -> tuple[str, int] | None:
        from gateway.shell.discovery import DiscoveredLinks

        mesh = node.gateway.mesh if node.gateway is not None else None
        return (mesh.bind.host, mesh.port) if isinstance(mesh, DiscoveredLinks) else None

    def _write_ports(self, node: "Node") -> None:
        if not self._options.ports_file_dir or node.clients is None:
            return
        clients = self._configuration.tls_clients
        scheme = "tls" if clients is not None and not clients.allow_non_tls else "nats"
        ports = {"nats": [f"{scheme}://{address}" for address in _reachable(node.clients)]}
        if node.monitored is not None:
            ports["monitoring"] = [f"http://{address}" for address in _reachable(node.monitored)]
        if (links := self._takes_links_at(node)) is not None:
            ports["cluster"] = [f"nats://{address}" for address in _reachable(links)]
        program = Path(sys.argv[0]).name
        self._ports_file = Path(self._options.ports_file_dir) / f"{program}_{os.getpid()}.ports"
        try:
            self._ports_file.write_text(json.dumps(ports, separators=(",", ":")))
        except OSError as error:
            log.error(f"Error writing ports file ({self._ports_file}): {error.strerror}")
            self._ports_file = None

    def _reopen(self) -> None:
        log.info('Trapped "user defined signal 1" signal')
        try:
            reopened = self._output.reopen()
        except OSError as error:  # the log goes on on stderr, where somebody may see it
            self._output.file = ""
            log.error(f"File log cannot be re-opened: {error.strerror}")
        else:
            log.info("File log re-opened" if reopened else "File log re-open ignored, not a file logger")

    def _reload(self) -> None:
        log.info('Trapped "hangup" signal')
        try:
            self._take_anew()
        except (MeshError, OSError) as error:
            reason = _told(error) if isinstance(error, OSError) else str(error)
            log.error(f"Failed to reload server configuration: {reason}")

    def _take_anew(self) -> None:
        """What of the file may change while the server runs. Refused, ConfigError, OSError: nothing has changed."""
        before, findings = self._options, Findings()
        if not before.config_file:
            raise Refused("can only reload config when a file is provided using -c or --config")
        options = nats_config.load(before.config_file, nats_config.environment(), findings)
        nats_server_flags.override(options, self._line, findings)
        configuration = _configuration(options, before.server_name, findings)
        both = before, options, self._configuration, configuration
        if (refusal := nats_server_reload.refusal(*both)) is not None:
            raise Refused(refusal)
        assert self._node is not None
        assert self._node.gateway is not None
        self._output.move(options.log_file)
        try:
            self._node.gateway.reload(configuration)
        except ConfigError:
            self._output.move(before.log_file)
            raise
        told = list(nats_server_reload.told(*both))
        self._options, self._configuration = options, configuration
        self._lines = nats_server_log.start(self._output, options)
        if options.pid_file != before.pid_file:
            try:
                self._write_pid()
            except OSError as error:
                log.error(f"Failed to write pidfile: {_told(error)}")
        if options.ports_file_dir != before.ports_file_dir:
            self.clean_up()
            self._write_ports(self._node)
        for sentence in (*findings.notices, *findings.warnings, *told):
            log.info(sentence)
        log.info(f"Reloaded server configuration ({options.config_digest})")


def _shown(address: tuple[str, int]) -> str:
    return str(config.Address(host=address[0], port=address[1]))


def _reachable(address: tuple[str, int]) -> list[str]:
    """The addresses of this machine where one that listens everywhere can be reached."""
    host, port = address
    if host not in ("0.0.0.0", "::"):
        return [_shown(address)]
    found = socket.getaddrinfo(socket.gethostname(), port, family=socket.AF_INET, type=socket.SOCK_STREAM)
    hosts = {str(each[4][0]) for each in found} | {"127.0.0.1"}
    return [_shown((each, port)) for each in sorted(hosts)]


# -- signals ----------------------------------------------------------------------------------------------------------


def send_signal(wanted: str) -> None:
    """`quit=4711` or `quit=nats.pid`. Refused says what is wrong."""
    command, _, target = wanted.partition("=")
    if "=" in target:
        raise Refused(f"invalid signal parameters: [{target.partition('=')[2]}]")
    if command not in _SIGNALS:
        raise Refused(f'unknown signal "{command}"')
    pid = _pid(target)
    try:
        os.kill(pid, _SIGNALS[command])
    except OSError as error:
        raise Refused(f'\nsignal "{command}" {pid}: {(error.strerror or str(error)).lower()}') from error


def _pid(target: str) -> int:
    if not target:
        raise Refused("--signal needs the process: quit=PID, or quit=FILE with a file that -P wrote")
    with contextlib.suppress(OSError):
        target = Path(target).read_text("utf-8", "replace")
    if not target.strip().isdecimal() or not 0 < int(target) < 2**31:
        raise Refused(f"invalid pid: {target.strip()}")
    return int(target)
