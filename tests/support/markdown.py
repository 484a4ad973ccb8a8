"""Markdown files as tests read them: fenced blocks, tables, links; and console blocks as a person would follow them.

A console block is what a terminal shows: a line `$ command`, further lines of it that begin with `> `, then its output.
In the output `...` stands for anything within a line, and alone on a line for any number of lines.

    ```console          commands that end; each block is one shell
    ```console NAME     the terminal NAME: `$ command` starts something that stays, lines at the beginning are what it
                        shows meanwhile, `^C` stops it
    ```LANGUAGE FILE    in any other language: is put into FILE before the blocks behind it are followed
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

COMMAND_WAIT_S_MAX = 60.0
TERMINAL_WAIT_S_MAX = 60.0
POLL_S = 0.02
_STOPPED = (0, 130)  # drained, or ended by Ctrl-C as shells have it
_FENCE = re.compile(r"^```(?P<language>\w*) *(?P<argument>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\((?P<target>[^)\s]+)\)")
_MARK = "\x1e"


class Block(NamedTuple):
    """A fenced block: ```` ```language argument ````."""

    language: str
    argument: str
    text: str


class Step(NamedTuple):
    """A command of a console block (`^C` too), and the lines that it shows."""

    command: str
    output: list[str]


def blocks(text: str, language: str = "") -> list[Block]:
    """All fenced blocks, or those in `language`."""
    found = [Block(each["language"], each["argument"].strip(), each["text"]) for each in _FENCE.finditer(text)]
    return [block for block in found if language in ("", block.language)]


def links(text: str) -> list[str]:
    """Targets of all links outside of fenced blocks."""
    return [each["target"] for each in _LINK.finditer(_FENCE.sub("", text))]


def rows(text: str) -> list[list[str]]:
    """The cells of all table rows outside of fenced blocks, code marks taken off; heads and rules left out."""
    lines = [line.strip() for line in _FENCE.sub("", text).splitlines()]
    found = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("|") and not _is_rule(line) and not _is_rule(following):
            cells = re.split(r"(?<!\\)\|", line.strip("|"))
            found.append([cell.strip().strip("`").replace("\\|", "|") for cell in cells])
    return found


def _is_rule(line: str) -> bool:
    return bool(line) and set(line) <= set("|-: ")


def steps(block: Block) -> Iterator[Step]:
    """The commands with their output. Lines before the first belong to `Step("", ...)`."""
    step = Step("", [])
    for line in block.text.splitlines():
        if line.startswith("$ ") or line == "^C":
            if step != ("", []):
                yield step
            step = Step(line.removeprefix("$ "), [])
        elif line.startswith("> ") and step.command and not step.output:
            step = Step(f"{step.command}\n{line[2:]}", [])
        else:
            step.output.append(line)
    yield step


def as_pattern(output: list[str]) -> str:
    """A regular expression for the lines, each with its line end."""
    pattern = ""
    for line in output:
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += re.escape(line.rstrip()).replace(re.escape("..."), ".*") + r"[ \t]*\n"
    return pattern


class _Terminal:
    """A command that stays, and the lines of its screen that were not looked at yet."""

    def __init__(self, command: str, folder: Path, environment: dict[str, str], screen: Path) -> None:
        self._screen, self._seen = screen, 0
        with screen.open("wb") as output:
            self.process = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip

    @property
    def shown(self) -> str:
        return self._screen.read_bytes()[self._seen :].decode("utf-8", "replace")

    def turn_page(self, shown: str) -> None:
        self._seen += len(shown.encode())

    def interrupt(self) -> int:
        """Ctrl-C; the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(TERMINAL_WAIT_S_MAX)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Reader:
    """Follows a document in `folder`. `ports` maps the ports that the document names to those that are used instead."""

    def __init__(self, folder: Path, ports: dict[int, int]) -> None:
        self._folder, self._ports = folder, ports
        self._terminals: dict[str, _Terminal] = {}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        server = f"nats://127.0.0.1:{ports[4222]}"
        self._environment = os.environ | {"NATS_URL": server, "TZ": "UTC", "LC_ALL": "C.UTF-8", "PATH": path}

    def follow(self, text: str) -> None:
        """AssertionError shows what a command has printed and what the document says."""
        for block in blocks(text):
            if block.language == "console" and block.argument:
                self._at_terminal(block)
            elif block.language == "console":
                self._in_shell(block)
            elif block.argument:
                (self._folder / block.argument).write_text(self._with_ports(block.text))

    def close(self) -> None:
        """Ends what still runs."""
        for terminal in self._terminals.values():
            terminal.close()

    # -- shells -------------------------------------------------------------------------------------------------------

    def _in_shell(self, block: Block) -> None:
        todo = list(steps(block))
        script = "".join(f"{self._with_ports(step.command)}\nprintf '{_MARK}%s\\n' $?\n" for step in todo)
        done = subprocess.run(
            ["bash", "-c", f"exec 2>&1\n{script}"],
            cwd=self._folder, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            timeout=COMMAND_WAIT_S_MAX, check=False,
        )  # fmt: skip
        printed = self._as_documented(done.stdout.decode("utf-8", "replace"))
        for step in todo:
            shown, _, printed = printed.partition(_MARK)
            status, _, printed = printed.partition("\n")
            _compare(step, shown)
            assert status == "0", f"$ {step.command}\nexit status {status}\n{shown}"

    # -- terminals ----------------------------------------------------------------------------------------------------

    def _at_terminal(self, block: Block) -> None:
        for step in steps(block):
            if step.command == "^C":
                terminal = self._terminals.pop(block.argument)
                try:
                    assert terminal.interrupt() in _STOPPED, f"{block.argument}: {terminal.shown}"
                finally:
                    terminal.close()
                _compare(step, self._as_documented(terminal.shown.lstrip("\n")))  # a line feed behind the ^C
                continue
            if step.command:
                self._start(block.argument, step.command)
            self._await(self._terminals[block.argument], step)

    def _start(self, name: str, command: str) -> None:
        subscribed = self._subscriptions() if command.startswith("mesh sub ") else None
        screen = self._folder / f"{name}.screen"
        self._terminals[name] = _Terminal(self._with_ports(command), self._folder, self._environment, screen)
        deadline = time.monotonic() + TERMINAL_WAIT_S_MAX
        while subscribed is not None and self._subscriptions() == subscribed:
            assert time.monotonic() < deadline, f"$ {command}\n{self._terminals[name].shown}"
            time.sleep(POLL_S)

    def _subscriptions(self) -> int:
        """A subscriber says nothing when it is ready; the monitor knows."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._ports[8222]}/varz", timeout=5) as answer:
            return int(json.load(answer)["subscriptions"])

    def _await(self, terminal: _Terminal, step: Step) -> None:
        """Until the screen shows what it should, and nothing else."""
        deadline = time.monotonic() + TERMINAL_WAIT_S_MAX
        pattern = re.compile(as_pattern(step.output))
        while not pattern.fullmatch(self._as_documented(shown := terminal.shown)):
            if terminal.process.poll() is not None or time.monotonic() > deadline:
                break
            time.sleep(POLL_S)
        _compare(step, self._as_documented(shown))
        terminal.turn_page(shown)

    # -- ports --------------------------------------------------------------------------------------------------------

    def _with_ports(self, text: str) -> str:
        for documented, used in self._ports.items():
            text = re.sub(rf"\b{documented}\b", str(used), text)
        addresses = f"--client 127.0.0.1:{self._ports[4222]} --monitor 127.0.0.1:{self._ports[8222]}"
        return re.sub(r"\bmesh up\b", f"mesh up {addresses}", text)

    def _as_documented(self, shown: str) -> str:
        """What would be shown on the documented ports; with the default one no command has to name the server."""
        shown = shown.replace(f" --server nats://127.0.0.1:{self._ports[4222]}", "")
        for documented, used in self._ports.items():
            shown = re.sub(rf"\b{used}\b", str(documented), shown)
        return shown


def _compare(step: Step, shown: str) -> None:
    shown += "\n" if shown and not shown.endswith("\n") else ""
    expected = "\n".join(step.output)
    assert re.fullmatch(as_pattern(step.output), shown), (
        f"$ {step.command}\n-- the document says\n{expected}\n-- it shows\n{shown}"
    )
