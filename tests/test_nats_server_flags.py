"""nats-server's flags: Go's syntax, what they override, what is refused by name."""

import subprocess

import pytest
from support import natsconf
from support.natsserver import BINARY

from mesh import nats_server_flags as flags
from mesh.nats_config_options import Options
from mesh.nats_config_values import Findings


def _options(*arguments: str, file: str = "") -> tuple[Options, Findings]:
    found, findings = natsconf.options(file or "x: 1\nport: $x")
    flags.override(found, flags.parse(arguments), findings)
    return found, findings


@pytest.mark.parametrize("arguments", [["-p", "1"], ["-p=1"], ["--p", "1"], ["--port=1"], ["-p", "0x1"], ["-p", "01"]])
def test_a_flag_can_be_written_in_many_ways(arguments: list[str]) -> None:
    assert _options(*arguments)[0].port == 1


def test_booleans_take_a_value_only_behind_an_equals_sign() -> None:
    line = flags.parse(["-D", "-V=false", "--trace=T", "false"])

    assert line.given == [("D", True), ("V", False), ("trace", True)]
    assert line.rest == ["false"]


def test_two_dashes_or_the_first_word_end_the_flags() -> None:
    assert flags.parse(["-D", "--", "-V"]).rest == ["-V"]
    assert flags.parse(["-D", "help", "-V"]).rest == ["help", "-V"]


@pytest.mark.parametrize(
    "line",
    ["-p", "-p abc", "-p=4x", "-p=", "-p 99999999999999999999", "-p 1_", "-p 08", "-D=maybe", "--nope", "---x", "-=x"],
)
def test_what_cannot_be_read_is_said_in_gos_words(line: str) -> None:
    arguments = line.split()
    theirs = subprocess.run([BINARY, *arguments], capture_output=True, text=True, timeout=20, check=False)

    with pytest.raises(flags.FlagError) as caught:
        flags.parse(arguments)

    assert str(caught.value) == theirs.stderr.strip()


def test_flags_override_the_file() -> None:
    file = "port: 1\nhost: a\nserver_name: x\nlogtime: true\nauthorization { user: a, pass: b }"
    found, findings = _options("-p", "2", "--addr", "b", "-n", "y", "-T=false", "-DV", "--user", "c", file=file)

    assert (found.port, found.host, found.server_name, found.logtime) == (2, "b", "y", False)
    assert (found.debug, found.trace) == (True, True)
    assert found.username == "c"
    assert findings.problems == []


def test_the_last_flag_counts() -> None:
    assert _options("-p", "1", "--port", "2")[0].port == 2


def test_tls_comes_whole_from_the_flags() -> None:
    file = "tls { cert_file: a, key_file: b, ca_file: c, verify: true, timeout: 5 }"
    found, _ = _options("--tls", "--tlscert", "x", "--tlskey", "y", file=file)

    assert found.tls is not None
    assert (found.tls.cert_file, found.tls.key_file, found.tls.ca_file, found.tls.verify) == ("x", "y", "", False)
    assert found.tls.timeout_ms == 5000
    assert _options("--tls=false", file=file)[0].tls is None
    assert _options("--tls")[1].problems == ["TLS Server certificate must be present and valid"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["-js"], "-js: JetStream is not available in this version"),
        (["-s"], "-s: logging to syslog is not available in this version"),
        (["--profile", "1"], "--profile: a profiling port is not available in this version"),
        (["-ms", "1"], "-ms: monitoring over HTTPS is not available in this version"),
    ],
)
def test_what_is_not_available_is_refused_by_name(arguments: list[str], problem: str) -> None:
    assert _options(*arguments)[1].problems == [problem]


def test_what_asks_for_nothing_is_taken() -> None:
    assert _options("-js=false", "-sd", "x", "--store_dir", "y", "--routes", "", "-ms", "0")[1].problems == []


def test_every_flag_of_nats_server_is_known() -> None:
    usage = subprocess.run([BINARY, "--help"], capture_output=True, text=True, timeout=20, check=False).stdout
    words = [word.strip(",") for line in usage.splitlines() for word in line.split("  ")[0:4] if word.startswith("-")]
    names = {part.strip().split()[0].lstrip("-") for word in words for part in word.split(",")}

    assert len(names) > 30
    assert names <= set(flags.FLAGS)
