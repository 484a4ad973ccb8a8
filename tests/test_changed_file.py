"""SIGHUP: which rates are taken from a file that has changed, and how the rest is named."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mesh.reloading import Reloading, different
from protocol import config
from protocol.config import Config

FILE = """
[mesh]
name = "acme"
revision = 3
[limits]
max_payload = "1MiB"
[zones.eu.gateways.egw]
client = "127.0.0.1:4222"
mesh = "127.0.0.1:6222"
[zones.eu.sinks.e1]
link = "127.0.0.1:6333"
data = "e1"
disk_reserve = "1GiB"
[zones.us.sinks.u1]
link = "127.0.0.1:6334"
data = "u1"
[zones.us.gateways.ugw]
client = "127.0.0.1:4223"
mesh = "127.0.0.1:6223"
[links.us.eu]
copy_rate = "10MB/s"
live_rate = "5MB/s"
[streams.orders]
subjects = ["orders.>"]
[[users]]
user = "shop"
password = "secret"
"""


class Process:
    """Of zone eu, with a file that a test changes."""

    def __init__(self, folder: Path, rate: str = "copy_rate") -> None:
        self.file = folder / "mesh.toml"
        self.file.write_text(FILE)
        self.took: list[Config] = []
        running = config.parse(FILE, "mesh.toml")
        self.reloading = Reloading(str(self.file), running, "eu", rate, _load, self.took.append)  # type: ignore[arg-type]

    def change(self, old: str, new: str) -> None:
        text = self.file.read_text()
        assert old in text
        self.file.write_text(text.replace(old, new))

    def reload(self) -> list[dict]:
        with capture_logs() as lines:
            self.reloading.reload()
        return lines

    def rates(self) -> tuple[int, int]:
        link = self.took[-1].link("eu", "us")
        return link.copy_rate_bytes_per_second, link.live_rate_bytes_per_second


def _load(file: str, content: bytes) -> Config:
    return config.parse(content.decode(), file)


@pytest.mark.parametrize(("rate", "before"), [("copy_rate", "10MB/s"), ("live_rate", "5MB/s")])
def test_the_rate_of_a_node_is_taken(tmp_path, rate, before):
    process = Process(tmp_path, rate)
    process.change(f'{rate} = "{before}"', f'{rate} = "1MB/s"')
    (line,) = process.reload()
    assert (line["event"], line["taken"]) == ("configuration_reloaded", [f"links.eu.us.{rate}"])
    assert 1_000_000 in process.rates()
    (again,) = process.reload()
    assert again["taken"] == []


def test_the_rate_of_other_nodes_is_not_spoken_of(tmp_path):
    process = Process(tmp_path, "copy_rate")
    process.change('live_rate = "5MB/s"', "")
    (line,) = process.reload()
    assert line["taken"] == []


def test_a_link_that_is_new_or_gone_changes_its_rate(tmp_path):
    process = Process(tmp_path)
    process.change('[links.us.eu]\ncopy_rate = "10MB/s"\nlive_rate = "5MB/s"\n', "")
    assert process.reload()[-1]["taken"] == ["links.eu.us.copy_rate"]
    assert process.rates() == (0, 0)
    process.change("[streams.orders]", '[links.eu.us]\ncopy_rate = "1kB/s"\n[streams.orders]')
    assert process.reload()[-1]["taken"] == ["links.eu.us.copy_rate"]
    assert process.rates() == (1_000, 0)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("revision = 3", "revision = 4", "mesh.revision"),
        ('max_payload = "1MiB"', 'max_payload = "2MiB"', "limits.max_payload"),
        ('disk_reserve = "1GiB"', 'disk_reserve = "2GiB"', "zones.eu.sinks.e1"),
        ('client = "127.0.0.1:4223"', 'client = "127.0.0.1:4224"', "zones.us.gateways.ugw"),
        ("[zones.us.sinks.u1]", "[zones.us]\ngroups = 2\n[zones.us.sinks.u1]", "zones.us"),
        ("[links.us.eu]", "[links.us.eu]\nlive = false", "links.eu.us"),
        ('password = "secret"', 'password = "other"', "users"),
    ],
)
def test_what_needs_a_restart_is_named_without_its_value_every_time(tmp_path, old, new, what):
    process = Process(tmp_path)
    process.change(old, new)
    for _ in range(2):
        refused, done = process.reload()
        assert (refused["event"], refused["what"]) == ("configuration_not_taken", what)
        assert refused["why"] == "it takes a restart"
        assert done["taken"] == []
        assert "other" not in str(refused)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ('subjects = ["orders.>"]', 'subjects = ["orders.>"]\nack = "geo"', "streams.orders"),
        ("[streams.orders]", '[streams.more]\nsubjects = ["more.>"]\n[streams.orders]', "streams.more"),
        ("[streams.orders]", '[streams.events]\nack = "logged"\n[streams.orders]', "streams.events"),
    ],
)
def test_streams_need_a_revision(tmp_path, old, new, what):
    process = Process(tmp_path)
    process.change(old, new)
    refused, _ = process.reload()
    assert (refused["what"], refused["why"]) == (
        what,
        "it takes a higher mesh.revision, and sinks that are started with it",
    )


def test_a_rate_is_taken_beside_what_is_not(tmp_path):
    process = Process(tmp_path)
    process.change('copy_rate = "10MB/s"', 'copy_rate = "1MB/s"')
    process.change("revision = 3", "revision = 4")
    refused, done = process.reload()
    assert (refused["what"], done["taken"]) == ("mesh.revision", ["links.eu.us.copy_rate"])


@pytest.mark.parametrize(("old", "new"), [("[links.us.eu]", "[links.us.nowhere]"), ('name = "acme"', "name = ")])
def test_a_file_that_is_wrong_changes_nothing(tmp_path, old, new):
    process = Process(tmp_path)
    process.change('copy_rate = "10MB/s"', 'copy_rate = "1MB/s"')
    process.change(old, new)
    lines = process.reload()
    assert {line["event"] for line in lines} == {"configuration_not_reloaded"}
    assert all("mesh.toml" in line["problem"] for line in lines)
    assert process.took == []


def test_a_file_that_is_gone_changes_nothing(tmp_path):
    process = Process(tmp_path)
    process.file.unlink()
    (line,) = process.reload()
    assert line["problem"].endswith("mesh.toml: No such file or directory")
    assert process.took == []


def test_what_has_not_changed_is_not_different():
    one, other = config.parse(FILE, "a"), config.parse(FILE.replace("links.us.eu", "links.eu.us"), "b")
    assert different(one, other) == []
