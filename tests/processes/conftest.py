from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import Folder, folder_at


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """A folder whose daemons are killed after the test; a traceback in one of them fails the test."""
    with folder_at(tmp_path) as made:
        yield made
