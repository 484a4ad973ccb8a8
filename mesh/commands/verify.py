"""`mesh coverage verify`: whether a certificate proves what it says, without any node of the mesh.

With data, from files or from sinks, their roots are computed and compared with the certified ones too. Exit status 0:
proved; 1: not, and what, where; 2: what was given cannot be read.
"""

import asyncio
import itertools
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import click
import msgspec
from rich.table import Table

from mesh import terminal
from mesh.certified_files import DataProblem, copies_in, look_at
from mesh.commands.failure import BadInput, Failure
from mesh.commands.sinks import ask, why
from mesh.node_tls import Expected, expected_sinks
from mesh.sizes import size
from protocol import certificate, certified, certified_data, config, link, signing
from protocol.certificate import BadCertificate, Certificate, NotProved, Partition, Proof
from protocol.certified_data import Growth
from protocol.config_units import Address
from protocol.coverage import digest_of
from protocol.errors import ConfigError, FrameError, SignatureError
from protocol.gaps import DAMAGED, leaf_digest
from protocol.limits import LINK_FETCH_BYTES_MAX
from protocol.merkle import check_inclusion, leaf_hash
from protocol.records import CONTROL, check_batch, split_batches
from protocol.streams import mirror_name

FETCH_S_MAX = 60.0
_numbers = itertools.count(1)


class Server(NamedTuple):
    """A sink whose batches are asked for, and who should be there where links are protected."""

    zone: str
    address: Address
    expected: Expected | None


def server_of(configuration: config.Config, text: str) -> Server:
    """The sink of the file with that link address, or that name. BadInput: there is none, or it cannot be dialled."""
    for zone in configuration.zones.values():
        for sink in zone.sinks.values():
            if text in (sink.name, str(sink.link)):
                try:
                    expected = expected_sinks(configuration, zone.name).get(sink.name)
                except ConfigError as error:
                    raise BadInput(str(error)) from error
                return Server(zone.name, sink.link, expected)
    known = ", ".join(str(sink.link) for zone in configuration.zones.values() for sink in zone.sinks.values())
    raise BadInput(f"no sink of the file has its links at {text}; there are: {known or 'none'}")


def read(file: Path) -> tuple[Certificate, str]:
    """(certificate, hash of its file). BadInput. NotProved: it was changed."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BadInput(f"{file}: {error.strerror}") from error
    try:
        return certificate.decode(data), certificate.file_hash(data)
    except BadCertificate as error:
        raise BadInput(f"{file}: {error}") from error


def write(file: Path, data: bytes) -> None:
    """All of it, or nothing. Failure."""
    temporary = file.with_name(file.name + ".tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(file)
    except OSError as error:
        raise Failure(f"{file}: {error.strerror}") from error


def read_authorities(file: Path) -> signing.Authorities:
    """BadInput."""
    try:
        return signing.read_authorities(file.read_bytes())
    except OSError as error:
        raise BadInput(f"{file}: {error.strerror}") from error
    except SignatureError as error:
        raise BadInput(f"{file}: {error}") from error


def run(
    file: Path, ca: Path, data: Path | None, server: Server | None, previous: Path | None, proof: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Prints what is proved. Failure: something is not."""
    authorities = read_authorities(ca)
    problems: list[str] = []
    read_bytes = copies = 0
    shown: Certificate | None = None
    try:
        shown, _ = read(file)
        certified.check(shown, certified.verifier(authorities, shown.mesh))
        if previous is not None:
            _check_previous(shown, previous, authorities)
        if data is not None:
            read_bytes, copies = _check_files(shown, data)
        if server is not None:
            read_bytes, copies = asyncio.run(_check_server(shown, server)), 1
        if proof is not None:
            _check_proof(shown, proof)
    except NotProved as error:
        problems = [f"{file}: {problem}" for problem in error.problems]
    if as_json:
        click.echo(msgspec.json.encode({"proved": not problems, "problems": problems, "data_bytes": read_bytes,
                                        "copies": copies}))  # fmt: skip
    elif shown is not None and not problems:
        _print(shown, read_bytes, copies)
    if problems:
        raise Failure("\n".join(["not proved", *problems]))


# -- what it is compared with -----------------------------------------------------------------------------------------


def _check_previous(shown: Certificate, file: Path, authorities: signing.Authorities) -> None:
    """The one that it goes on from. BadInput, NotProved."""
    before, its_hash = read(file)
    certified.check(before, certified.verifier(authorities, before.mesh))
    if shown.previous != its_hash:
        raise NotProved([f"it does not go on from {file}: that has SHA-256 {its_hash}, it names "
                         f"{shown.previous or 'none'}"])  # fmt: skip
    for one, other in zip(shown.partitions, before.partitions, strict=False):
        named = one.previous
        if named is None or (named.to, named.size, named.root) != (other.to, other.size, other.root):
            raise NotProved([f"partition {one.partition}: it does not go on from where {file} ends"])


def _check_files(shown: Certificate, folder: Path) -> tuple[int, int]:
    """(bytes, copies of partitions). BadInput, NotProved."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: no folder")
    try:
        copies = copies_in(folder, shown)
        total, problems = 0, []
        for partition in shown.partitions:
            own = [copy for copy in copies if copy.partition == partition.partition]
            if not own and partition.from_ < partition.to:
                problems.append(f"partition {partition.partition}: {folder} has no segments of incarnation "
                                f"{shown.incarnation}: it is not the data of this log")  # fmt: skip
            for copy in own:
                found, read_bytes = look_at(copy, partition)
                problems += [f"{copy.folder}: {what}" for what in
                             certified_data.problems_of_data(shown, partition, found)]  # fmt: skip
                total += read_bytes
    except DataProblem as error:
        raise NotProved([str(error)]) from error
    except OSError as error:
        raise BadInput(f"{error.filename or folder}: {error.strerror}") from error
    if problems:
        raise NotProved(problems)
    return total, len(copies)


async def _check_server(shown: Certificate, server: Server) -> int:
    """Bytes that were read from a sink. BadInput: it cannot be asked. NotProved."""
    read_bytes, problems = 0, []
    for partition in shown.partitions:
        found, size_bytes = await _fetched(shown, partition, server)
        read_bytes += size_bytes
        problems += certified_data.problems_of_data(shown, partition, found)
    if problems:
        raise NotProved(problems)
    return read_bytes


async def _fetched(shown: Certificate, partition: Partition, server: Server) -> tuple[certified_data.Found, int]:
    name = shown.stream if server.zone == shown.zone else mirror_name(shown.stream, shown.zone)
    growth = Growth(partition.partition, partition.from_size, partition.frontier_from)
    offset, read_bytes, group = partition.from_, 0, 0
    while offset < partition.to:
        hello = link.Hello(shown.mesh, server.zone, link.OPERATOR, group)
        question = link.Fetch(next(_numbers), name, partition.partition, offset, LINK_FETCH_BYTES_MAX, 0)
        try:
            frame = await ask(server.address, hello, question, FETCH_S_MAX, server.expected)
            offset = _grow(growth, frame.tail, offset, partition.to)
        except Failure as error:
            if group == 0 and (found := _group_in(error.message)):
                group = found
                continue
            raise NotProved([f"partition {partition.partition}: {server.address}: {error}"]) from error
        except (OSError, TimeoutError) as error:
            raise BadInput(f"{server.address}: {why(error)}") from error
        except FrameError as error:
            raise NotProved([f"partition {partition.partition}: offset {offset}: {error}"]) from error
        read_bytes += len(frame.tail)
    return growth.found(), read_bytes


def _group_in(message: str) -> int:
    """A sink says in which other group a partition is; 0: it says something else."""
    _, found, rest = message.partition(" is in group ")
    number = rest.split(" ")[0]
    return int(number) if found and number.isdigit() else 0


def _grow(growth: Growth, data: bytes, offset: int, to_offset: int) -> int:
    """The offset behind the last batch that was taken. FrameError."""
    before = offset
    for batch in split_batches(data):
        header = check_batch(batch)
        if header.base_offset >= to_offset:
            break
        if header.base_offset != offset:
            raise FrameError(f"a batch at offset {header.base_offset} where {offset} is due")
        growth.take(leaf_hash(offset, leaf_digest(header, batch)))
        if header.attributes & CONTROL:
            growth.note(header, batch)
        offset = header.next_offset
    if offset == before:
        raise FrameError("the sink has no more")
    return offset


def _check_proof(shown: Certificate, file: Path) -> None:
    """That an event is in the log that is certified. BadInput, NotProved."""
    try:
        proof = msgspec.json.decode(file.read_bytes(), type=Proof)
    except OSError as error:
        raise BadInput(f"{file}: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"{file}: no proof: {error}") from error
    check_proof(shown, proof)


def check_proof(shown: Certificate, proof: Proof) -> None:
    """NotProved."""
    where = f"offset {proof.offset} of partition {proof.partition}"
    partition = next((one for one in shown.partitions if one.partition == proof.partition), None)
    if partition is None or (proof.incarnation, proof.size, proof.root) != (
        shown.incarnation, partition.size, partition.root,
    ):  # fmt: skip
        raise NotProved([f"{where}: the proof is not from the tree that is certified"])
    try:
        batch = certificate.from_base64(proof.batch)
        header = check_batch(batch)
        digest, path = bytes.fromhex(proof.digest), [bytes.fromhex(one) for one in proof.path]
    except (FrameError, ValueError) as error:
        raise NotProved([f"{where}: {error}"]) from error
    is_held = header.base_offset == proof.base_offset and header.base_offset <= proof.offset < header.next_offset
    spoilt = {gap.offset for gap in shown.gaps if (gap.partition, gap.reason) == (proof.partition, DAMAGED)}
    known = leaf_digest(header, batch) if header.base_offset in spoilt else digest_of(batch)
    if not is_held or digest != known:
        raise NotProved([f"{where}: it is not in the batch that is proved"])
    if not check_inclusion(leaf_hash(proof.base_offset, digest), proof.number, proof.size, path,
                           bytes.fromhex(proof.root)):  # fmt: skip
        raise NotProved([f"{where}: its path does not lead to the certified root"])


# -- what is shown ----------------------------------------------------------------------------------------------------


def _print(shown: Certificate, read_bytes: int, copies: int) -> None:
    made = datetime.fromtimestamp(shown.time / 1000, UTC).isoformat(timespec="milliseconds")
    say: Callable[[str], None] = click.echo
    say(f"{shown.stream} of zone {shown.zone}, mesh {shown.mesh}, incarnation {shown.incarnation}, as of {made}")
    terminal.console().print(_table(shown))
    for accounts in shown.accounts:
        if accounts.unaccounted:
            say(f"partition {accounts.partition}: {accounts.unaccounted} events are of producers that give no account")
    for one in shown.partitions:
        if one.damaged:
            say(f"partition {one.partition}: {one.damaged} offsets are spoilt on all disks: nobody has them any more")
    for gap in shown.gaps:
        why_ = gap.reason or "a control record of somebody else"
        say(f"partition {gap.partition}: gap at offset {gap.offset}: {gap.events} events: {why_}")
    for zone in shown.zones:
        names = [signer.node for signer in shown.signers if signer.zone == zone.zone]
        say(f"signed in zone {zone.zone} by {len(names)} of {len(zone.sinks)} sinks: {', '.join(names)}")
    if shown.previous:
        say(f"goes on from the certificate with SHA-256 {shown.previous}")
    if copies:
        what = "1 copy: its root is the certified one" if copies == 1 else f"{copies} copies: their roots are certified"
        say(f"data: {size(read_bytes)} in {what}")
    say("proved")


def _table(shown: Certificate) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = (
        "PARTITION",
        "FROM",
        "TO",
        "BATCHES",
        "HELD",
        "DUPLICATES",
        "REFUSED",
        "GAPS",
        "LOST",
        "CONTROL",
        "BEACONS",
    )
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("ROOT", no_wrap=True)
    for one, accounts in zip(shown.partitions, shown.accounts, strict=True):
        each = accounts.producers
        counts = (
            sum(p.held + p.before.held for p in each),
            sum(p.duplicates + p.before.duplicates for p in each),
            sum(p.refused + p.before.refused for p in each),
            sum(p.gaps + p.before.gaps for p in each),
            sum(p.lost for p in each),
            accounts.control,
        )
        compared = f"{sum(p.beacon >= 0 for p in each)} of {len(each)}"
        place = one.partition, one.from_, one.to, one.size
        table.add_row(*map(str, place), *map(str, counts), compared, f"{one.root[:16]}…")
    return table
