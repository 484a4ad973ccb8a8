"""What the real nats-server says of a configuration file: `nats-server -t`."""

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from support.natsserver import BINARY

_DIGEST = re.compile(r"is valid \((sha256:[0-9a-f]{64})\)\n$")
_PARSE_ERROR = re.compile(r"nats-server: Parse error on line (\d+): '(.*)'\n$", re.DOTALL)


class Verdict(NamedTuple):
    """`digest` of a file that is right; `line` and `error` where it is not in the format; `stderr` as it is."""

    status: int
    digest: str
    line: int
    error: str
    stderr: str


def check(file: Path, text: str) -> Verdict:
    """Writes `text` there and has it checked."""
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    done = subprocess.run([BINARY, "-t", "-c", str(file)], capture_output=True, timeout=20, check=False)
    stderr = done.stderr.decode("utf-8", "surrogateescape")
    digest, error = _DIGEST.search(stderr), _PARSE_ERROR.search(stderr)
    return Verdict(
        done.returncode,
        digest[1] if digest else "",
        int(error[1]) if error else 0,
        error[2] if error else "",
        stderr,
    )


def anything(body: str) -> str:
    """A file in which nats-server takes `body`, keys and values of a map, whatever they are."""
    return "tls { ca_certs_match { " + body + "\n}}\n"
