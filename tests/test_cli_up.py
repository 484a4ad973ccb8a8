"""`mesh` against a real `mesh up`: what its documents show, and nothing lost or doubled when the server is killed."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import corpus, markdown
from support.cli import invoked, mesh, start
from support.processes import Folder, folder_at, free_ports, until

DOCUMENTS = Path(__file__).parent.parent / "docs"
DOCUMENTED_PORTS = (4222, 8222)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    with folder_at(tmp_path) as opened:
        yield opened


@pytest.mark.parametrize("document", ["cli.md", "python-client.md"])
def test_what_a_document_shows_happens(document: str, tmp_path: Path) -> None:
    reader = markdown.Reader(tmp_path, dict(zip(DOCUMENTED_PORTS, free_ports(2), strict=True)))
    try:
        reader.follow((DOCUMENTS / document).read_text())
    finally:
        reader.close()


async def test_a_text_goes_in_and_comes_back_though_the_server_is_killed(folder: Folder) -> None:
    lines = [line + b"\n" for line in corpus.lines(10_000)[:10_000]]
    text, last = b"".join(lines), lines[-1]
    url = ("-s", folder.url)
    server = await folder.up("--stream", "lines=lines.>")
    following = await start("replay", "lines", "--follow", "--raw", "--count", "10000", *url)
    publishing = await start("pub", "lines.a", "--lines", "-", *url)
    assert publishing.stdin is not None
    assert following.stdout is not None
    publishing.stdin.write(text.removesuffix(last))  # it is under way until it has the last one
    followed = await following.stdout.readexactly(len(text) // 4)
    server.kill()
    await asyncio.sleep(0.5)
    publishing.send_signal(signal.SIGSTOP)  # it waits for half a minute, and some machines need longer to start one
    await folder.up("--stream", "lines=lines.>")
    publishing.send_signal(signal.SIGCONT)
    out, err = await publishing.communicate(last)
    assert (publishing.returncode, err.count(b"\n")) == (0, 0), err.decode()
    assert out.startswith(b"10000 lines kept in lines@local")
    followed += (await following.communicate())[0]
    assert followed == text
    assert (await invoked("replay", "lines", "--raw", *url)).out == text


async def test_every_partition_is_replayed_once(folder: Folder) -> None:
    folder.write_config('[streams.orders]\nsubjects = ["orders.>"]\npartitions = 3')
    await folder.both()
    url = ("-s", folder.url)
    for number in range(9):
        assert (await invoked("pub", f"orders.{number}", f"{number}", *url)).status == 0
    ran = await invoked("replay", "orders", "--raw", *url)
    assert sorted(ran.lines) == [str(number) for number in range(9)]
    apart = [
        (await invoked("replay", "orders", "--raw", "--partition", str(number), *url)).lines for number in range(3)
    ]
    assert [*apart[0], *apart[1], *apart[2]] == ran.lines
    following = await invoked("replay", "orders", "--raw", "--follow", "--count", "9", *url)
    assert sorted(following.lines) == sorted(ran.lines)


async def test_without_a_log_nothing_is_said_to_be_kept(folder: Folder) -> None:
    await folder.up("--mode", "delivery-fabric")
    url = ("-s", folder.url)
    ran = await invoked("pub", "a", "x", *url)
    assert ran == (1, b"", "mesh: refused: no stream keeps this subject and nobody subscribes to it (--no-ack?)\n")
    ran = await invoked("replay", "events", *url)
    assert (ran.status, ran.out) == (1, b"")
    assert "delivery-fabric: it keeps no log" in ran.err
    assert (await invoked("streams", *url)).out == b"zone local keeps no streams\n"


async def test_a_server_that_cannot_start_says_why(folder: Folder) -> None:
    await folder.up()
    address = f"127.0.0.1:{folder.client_port}"
    other = await mesh("up", "--client", address, "--monitor", "127.0.0.1:0", "--data", str(folder.path / "other"))
    assert other.status == 1
    assert f"mesh: cannot listen on {address} for clients: address already in use\n" in other.err
    nowhere = await mesh("up", "--client", "no.such.host.invalid:4222", "--data", str(folder.path / "other"))
    assert "mesh: cannot listen on no.such.host.invalid:4222 for clients: " in nowhere.err
    monitor = "127.0.0.1:0", "--monitor", f"127.0.0.1:{folder.monitor_port}"
    other = await mesh("up", "--client", *monitor, "--data", str(folder.path / "other"))
    assert f"mesh: cannot listen on {monitor[2]} for monitoring: address already in use\n" in other.err
    same = await mesh("up", "--client", "127.0.0.1:0", "--monitor", "127.0.0.1:0", "--data", str(folder.data))
    assert same.status == 1
    assert str(folder.data) in same.err
    wrong = await invoked("up", "--stream", "a=x.>", "--stream", "b=x.y")
    assert wrong.status == 1
    assert "--stream" in wrong.err


async def test_lines_that_come_slowly_survive_a_restart(folder: Folder) -> None:
    server = await folder.up()
    publishing = await start("pub", "slow", "--lines", "-", "-s", folder.url)
    assert publishing.stdin is not None
    publishing.stdin.write(b"one\n")

    async def kept() -> list[str]:
        return (await invoked("replay", "events", "--raw", "-s", folder.url)).lines

    async with asyncio.timeout(60):
        while await kept() != ["one"]:
            pass
    await server.stop(signal.SIGTERM)
    await folder.up()
    publishing.stdin.write(b"two\n")
    publishing.stdin.close()
    await until(lambda: publishing.returncode is not None, "it ends")
    assert publishing.returncode == 0
    assert await kept() == ["one", "two"]
