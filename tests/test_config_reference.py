"""The configuration reference is what the schema says, and its example is a configuration."""

import re
import subprocess
import sys
from pathlib import Path

from mesh import config_reference
from protocol import config, config_schema

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"


def test_the_page_is_what_the_schema_says() -> None:
    assert PAGE.read_text("utf-8") == config_reference.render(), (
        "make it anew: python -m mesh.config_reference > docs/configuration.md"
    )


def test_the_module_prints_the_page() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "mesh.config_reference"], capture_output=True, text=True, check=True
    )
    assert printed.stdout == config_reference.render()


def test_the_example_is_a_configuration() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    parsed = config.parse(example, "configuration.md")
    assert parsed.sink("eu-sink3").zone == "eu"


def test_every_key_of_the_schema_has_a_meaning_and_a_row() -> None:
    rows = set(re.findall(r"^\| `([^`]+)`", config_reference.render(), re.MULTILINE))
    last_keys = {row.rpartition(".")[2] for row in rows}
    tables = [
        kind
        for kind in vars(config_schema).values()
        if isinstance(kind, type) and issubclass(kind, config_schema.Table)
    ]
    structure = {config_schema.Table, config_schema.File, config_schema.Tls}
    for table in tables:
        if table not in structure:
            assert table.__doc__
            keys = {name for name, field in table.model_fields.items() if field.description}
            assert keys - {"gateways", "sinks"} <= last_keys, table
