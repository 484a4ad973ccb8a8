"""`mesh config import`: a nats.conf becomes a mesh.toml that `mesh check` accepts."""

import os
from pathlib import Path

from support.cli import invoked

from protocol import config

CONF = """
server_name: n1
port: -1
max_payload: 2MB
log_file: "/tmp/x.log"
authorization { users = [ { user: a, password: $SECRET } ] }
"""


async def test_the_file_is_one_that_check_accepts(tmp_path: Path) -> None:
    (tmp_path / "nats.conf").write_text(CONF)
    toml = tmp_path / "mesh.toml"

    done = await invoked("config", "import", str(tmp_path / "nats.conf"), "-o", str(toml), SECRET="hidden")

    assert (done.status, done.out) == (0, b"")
    assert (await invoked("check", str(toml))).status == 0
    found = config.parse(toml.read_text(), "mesh.toml")
    assert found.limits.max_payload_bytes == 2 * 1024**2
    assert found.users[0].password == "hidden"
    assert "gateway --config THIS_FILE --node n1" in toml.read_text()
    assert (
        "nats.conf:5:1 log_file is for one process and has no place here; instead: redirect stderr" in toml.read_text()
    )


async def test_it_is_for_its_owner_alone_and_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "nats.conf").write_text("port: 1")
    toml = tmp_path / "mesh.toml"
    await invoked("config", "import", str(tmp_path / "nats.conf"), "--output", str(toml))
    first = toml.read_text()

    again = await invoked("config", "import", str(tmp_path / "nats.conf"), "--output", str(toml))

    assert os.stat(toml).st_mode & 0o777 == 0o600
    assert again.status == 1
    assert again.err == f"mesh: {toml}: there is such a file already; remove it, or name another\n"
    assert toml.read_text() == first


async def test_without_a_file_it_goes_to_stdout(tmp_path: Path) -> None:
    (tmp_path / "nats.conf").write_text("port: 1")

    done = await invoked("config", "import", str(tmp_path / "nats.conf"))

    assert config.parse(done.out.decode(), "-").gateway("gw1").client.port == 1


async def test_everything_that_is_wrong_is_said_and_nothing_written(tmp_path: Path) -> None:
    (tmp_path / "nats.conf").write_text("port: x\njetstream: enabled")

    done = await invoked("config", "import", str(tmp_path / "nats.conf"), "-o", str(tmp_path / "mesh.toml"))

    assert done.status == 1
    assert done.err.splitlines() == [
        f'{tmp_path}/nats.conf:1:1: port: must be a whole number such as 100, 64k or 1MB, got "x"',
        f"{tmp_path}/nats.conf:2:1: jetstream: JetStream is not available in this version; remove 'jetstream'",
    ]
    assert not (tmp_path / "mesh.toml").exists()


async def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = await invoked("config", "import", str(tmp_path / "nope.conf"))

    assert (done.status, done.err) == (1, f"mesh: {tmp_path}/nope.conf: No such file or directory\n")
