"""The documentation is true: what it shows is run, what it lists is compared with the code, what it links to exists.

tests/support/markdown.py says how a document is followed.
"""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import pytest
import tomli
from support import markdown
from support.processes import Folder, folder_at, free_ports

from protocol import publish

TOP = Path(__file__).parent.parent
DOCUMENTED_PORTS = (4222, 8222, 6333, 8223, 6334, 6335, 6343, 6344, 6345)


def read(name: str) -> str:
    return (TOP / name).read_text()


def repository_files() -> list[str]:
    """Everything that git tracks, or would with `git add`; what was deleted and not committed is left out."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=TOP, stdout=subprocess.PIPE, check=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not a git checkout, or no git: {error}")
    return sorted(name for name in listed.split("\0") if name and (TOP / name).is_file())


# -- what is shown ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", ["README.md", "docs/quickstart.md", "docs/contracts.md"])
def test_what_a_document_shows_happens(document: str, tmp_path: Path) -> None:
    if "$ curl" in read(document) and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    reader = markdown.Reader(tmp_path, dict(zip(DOCUMENTED_PORTS, free_ports(len(DOCUMENTED_PORTS)), strict=True)))
    try:
        reader.follow(read(document))
    finally:
        reader.close()


def test_a_wrong_output_is_noticed(tmp_path: Path) -> None:
    reader = markdown.Reader(tmp_path, {4222: 4222, 8222: 8222})
    reader.follow("```console\n$ seq 3\n1\n...\n$ echo a b\na ...\n```\n")
    for wrong in ("$ seq 3\n1\n2\n", "$ echo a b\nab\n", "$ false\n", "$ seq 2\n...\n1\n"):
        with pytest.raises(AssertionError):
            reader.follow(f"```console\n{wrong}```\n")


def test_the_first_thing_in_the_readme_are_the_two_commands() -> None:
    first, *_ = markdown.blocks(read("README.md"))
    commands = [line.partition("#")[0].strip() for line in first.text.splitlines()]
    assert commands == ["make run", "make test"]
    targets = re.findall(r"^(\w[\w-]*):", read("Makefile"), re.MULTILINE)
    assert {"run", "test"} <= set(targets)


# -- where it links ---------------------------------------------------------------------------------------------------


def markdown_files() -> Iterator[str]:
    return (name for name in repository_files() if name.endswith(".md"))


def test_every_relative_link_leads_somewhere() -> None:
    broken = []
    for name in markdown_files():
        for target in markdown.links(read(name)):
            path, _, anchor = target.partition("#")
            if "://" in target or target.startswith("mailto:"):
                continue
            file = (TOP / name).parent / path if path else TOP / name
            if not file.exists() or (anchor and anchor not in _anchors(file)):
                broken.append(f"{name}: {target}")
    assert not broken


def _anchors(file: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def test_the_index_names_every_page() -> None:
    linked = {Path(target).name for target in markdown.links(read("docs/README.md"))}
    assert {file.name for file in (TOP / "docs").glob("*.md")} - {"README.md"} <= linked


def test_no_file_names_a_place_of_somebodys_machine() -> None:
    places = re.compile(rb"(?<![\w.-])/(?:work|root|home|Users)/[\w.-]")
    found = []
    for name in repository_files():
        for number, line in enumerate((TOP / name).read_bytes().splitlines(), 1):
            if places.search(line) and name != Path(__file__).relative_to(TOP).as_posix():
                found.append(f"{name}:{number}: {line[:100].decode('utf-8', 'replace')}")
    assert not found


# -- what it lists ----------------------------------------------------------------------------------------------------


def test_every_dependency_has_its_line() -> None:
    declared = tomli.loads(read("pyproject.toml"))
    project = declared["project"]
    wanted = project["dependencies"], declared["build-system"]["requires"], project["optional-dependencies"]["test"]
    _, *sections = re.split(r"^## ", read("docs/dependencies.md"), flags=re.MULTILINE)
    for text, requirements in zip(sections, wanted, strict=True):
        names = re.findall(r"^[\w.-]+", "\n".join(requirements), re.MULTILINE)
        rows = markdown.rows(text)
        assert sorted(row[0] for row in rows) == sorted(names)
        assert all(len(row) == 3 and all(row) for row in rows)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    with folder_at(tmp_path) as opened:
        yield opened


async def test_metrics_are_those_that_are_served(folder: Folder) -> None:
    await folder.up()
    url = f"http://127.0.0.1:{folder.monitor_port}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        text = await answer.text()
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    meanings = dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.MULTILINE))
    documented = {row[0]: (row[1], row[3]) for row in markdown.rows(read("docs/metrics.md"))}
    assert documented == {name: (types[name], meanings[name]) for name in types}


Rows = list[list[str]]


@pytest.fixture
def tables() -> Callable[[str], Rows]:
    """The table of docs/promises.md whose first column has this head, by the sentence before it."""
    text = read("docs/promises.md")

    def table_behind(sentence: str) -> Rows:
        assert text.count(sentence) == 1, sentence
        behind = text.partition(sentence)[2].lstrip("\n")
        return markdown.rows(behind.partition("\n\n")[0])

    return table_behind


def refusal_of(row: list[str]) -> publish.Refusal:
    return publish.Refusal(int(row[0]), int(row[1]), row[2])


def test_promises_list_every_refusal(tables: Callable[[str], Rows]) -> None:
    documented = [refusal_of(row) for row in tables("Refused before it is taken, or before it is sent:\n")]
    documented += [refusal_of(row) for row in tables("Refused by the log:\n")]
    fixed = {value for value in vars(publish).values() if isinstance(value, publish.Refusal)}
    made = {
        publish.wrong_last_sequence("N"),
        publish.wrong_last_id("ID"),
        publish.several_partitions("NAME", "STREAM", "N"),  # type: ignore[arg-type]
        publish.breaks_contract("NAME", "WHAT"),
        publish.too_few_zones("STREAM", 1, ()),
        publish.too_few_zones("STREAM", "N", ("ZONES",)),  # type: ignore[arg-type]
    }
    assert sorted(documented) == sorted(fixed | made)


def test_promises_list_every_header_that_is_refused(tables: Callable[[str], Rows]) -> None:
    rows = tables("Headers that ask for what nobody does here are refused, never ignored:\n")
    for name, *row in rows:
        header = name if ":" in name else f"{name}: 1"
        found = publish.read_publish_headers(f"NATS/1.0\r\n{header}\r\n\r\n".encode())
        assert (found.asks, found.refusal) == (True, refusal_of(row)), name
    documented = {name.partition(":")[0].encode() for name, *_ in rows}
    assert documented == {*publish._UNAVAILABLE}


def test_promises_list_every_header_that_asks(tables: Callable[[str], Rows]) -> None:
    text = read("docs/promises.md")
    (table,) = re.findall(r"^\| header \| what it asks for \|\n(?:\|.*\n)+", text, re.MULTILINE)
    values = {"Nats-Expected-Last-Sequence": "7", "Mesh-Ack": "geo"}
    fields = set()
    for name, _ in markdown.rows(table):
        block = f"NATS/1.0\r\n{name}: {values.get(name, 'x')}\r\n\r\n".encode()
        found = publish.read_publish_headers(block)
        fields |= {field for field, value in found._asdict().items() if value is not None and field != "asks"}
        assert found.asks, name
        assert found.refusal is None, name
    assert fields == set(publish.PublishHeaders._fields) - {"asks", "refusal"}
