"""`mesh certs`: the certificates of the links between nodes, made, shown and renewed.

Everything is looked at before anything is written: a command that fails has changed nothing, unless the disk fails it.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mesh import authority
from mesh.commands.failure import notice
from mesh.node_tls import name_in
from protocol.config import Config, TlsNodes
from protocol.errors import ConfigError, FrameError, MeshError


def init(configuration: Config, days: int, *, force: bool) -> None:
    """A new authority, and a certificate for every node of the file. ConfigError, MeshError: nothing was written."""
    files = authority.node_files(configuration)
    settings = _settings(configuration)
    ca_key = authority.key_file(settings)
    _refuse_overwriting([settings.ca, ca_key, *_paths(files.values())], force)
    signer = authority.make(configuration.mesh.name)
    authority.write_key(ca_key, signer.key)
    authority.write_certificate(settings.ca, signer.certificate)
    click.echo(f"authority of mesh {configuration.mesh.name}: {settings.ca}, its key {ca_key}")
    for node, own in files.items():
        _issue(signer, configuration, node, own, days)


def issue(configuration: Config, node: str, days: int, *, force: bool) -> None:
    """A key and a certificate for one node, by the authority that there is."""
    own = _of(configuration, node)
    _refuse_overwriting(_paths([own]), force)
    _issue(authority.load(_settings(configuration)), configuration, node, own, days)


def renew(configuration: Config, nodes: Sequence[str], days: int) -> None:
    """New certificates for the keys of `nodes`, or of all whose certificates are here."""
    files = authority.node_files(configuration)
    wanted = list(dict.fromkeys(nodes)) or [node for node, own in files.items() if Path(own.cert).exists()]
    if not wanted:
        raise MeshError("no certificate of any node is here; `mesh certs init` makes them")
    signer = authority.load(_settings(configuration))
    keys = {node: _key(_of(configuration, node)) for node in wanted}
    for node, key in keys.items():
        certificate = authority.sign(signer, configuration, node, key, days)
        authority.write_certificate(files[node].cert, certificate)
        click.echo(f"{node}: {files[node].cert}, until {_day(certificate)}")


def show(configuration: Config | None, given: Sequence[str], as_json: bool) -> int:
    """What certificates say, those of `given` files or of the configuration's. Exit status: 1 if one is of no use."""
    files = list(given)
    if configuration is not None and not given:
        own = authority.node_files(configuration)
        files = [_settings(configuration).ca, *(each.cert for each in own.values())]
    rows = [_row(file) for file in files]
    if as_json:
        click.echo(json.dumps(rows))
    else:
        for row in rows:
            _print_row(row)
    return int(any(row["problem"] for row in rows))


def _issue(signer: authority.Signer, configuration: Config, node: str, files: TlsNodes, days: int) -> None:
    key = authority.new_key()
    certificate = authority.sign(signer, configuration, node, key, days)
    authority.write_key(files.key, key)
    authority.write_certificate(files.cert, certificate)
    click.echo(f"{node}: {files.cert}, {files.key}, until {_day(certificate)}")


def _key(files: TlsNodes) -> authority.Key:
    """The key that a certificate is renewed for. ConfigError: the two are not there, or do not fit."""
    key = authority.read_key(files.key)
    if authority.read_certificate(files.cert).public_key() != key.public_key():
        raise ConfigError([f"{files.key} is not the key of {files.cert}; `mesh certs issue --force` makes both anew"])
    return key


def _settings(configuration: Config) -> TlsNodes:
    assert configuration.tls_nodes is not None  # `node_files` has looked
    return configuration.tls_nodes


def _of(configuration: Config, node: str) -> TlsNodes:
    files = authority.node_files(configuration)
    configuration.zone_of(node)  # ConfigError: there is no such node
    return files[node]


def _paths(files: Iterable[TlsNodes]) -> list[str]:
    return [path for own in files for path in (own.cert, own.key)]


def _refuse_overwriting(files: Iterable[str], force: bool) -> None:
    there = [file for file in files if Path(file).exists()]
    if there and not force:
        raise MeshError(f"{', '.join(there)}: there already, nothing was written; --force writes anew")


def _day(certificate: authority.Certificate) -> str:
    return certificate.not_valid_after_utc.date().isoformat()


def _row(file: str) -> dict[str, Any]:
    row: dict[str, Any] = {"file": file, "node": None, "begins": None, "ends": None, "authority": False, "problem": ""}
    try:
        certificate = authority.read_certificate(file)
    except ConfigError as error:
        return row | {"problem": str(error).removeprefix(f"{file}: ")}
    row |= {
        "begins": certificate.not_valid_before_utc.isoformat(),
        "ends": certificate.not_valid_after_utc.isoformat(),
        "authority": _is_authority(certificate),
        "issuer": certificate.issuer.rfc4514_string(),
        "problem": _date_problem(certificate),
    }
    if not row["authority"]:
        try:
            row["node"] = str(name_in(certificate.public_bytes(Encoding.DER)))
        except FrameError as error:
            row["problem"] = row["problem"] or str(error)
    return row


def _is_authority(certificate: authority.Certificate) -> bool:
    try:
        found = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except x509.ExtensionNotFound:
        return False
    return bool(found.value.ca)


def _date_problem(certificate: authority.Certificate) -> str:
    if certificate.not_valid_after_utc <= authority.now():
        return f"expired {_day(certificate)}"
    if certificate.not_valid_before_utc > authority.now():
        return f"begins {certificate.not_valid_before_utc.isoformat()} only"
    return ""


def _print_row(row: dict[str, Any]) -> None:
    if row["begins"] is not None:
        who = "authority" if row["authority"] else row["node"] or "no node"
        click.echo(f"{row['file']}: {who}, by {row['issuer']}, until {row['ends']}")
    if row["problem"]:
        notice(f"{row['file']}: {row['problem']}")
