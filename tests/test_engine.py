"""Where there is a C compiler the compiled twins must be the ones that run: else all speed is gone, silently."""

import shutil
import sysconfig

import pytest

from gateway.core import engine
from protocol import engine as record_engine

COMPILER = (sysconfig.get_config_var("CC") or "cc").split()[0]


def test_the_compiled_forwarder_is_loaded_where_it_could_be_built() -> None:
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no C compiler: {COMPILER} is not on the PATH")
    assert engine.COMPILED is not None
    assert engine.BEST is engine.COMPILED
    assert engine.COMPILED.forwarder is not engine.REFERENCE.forwarder


def test_the_compiled_record_batches_are_loaded_where_they_could_be_built() -> None:
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no C compiler: {COMPILER} is not on the PATH")
    assert record_engine.COMPILED is not None
    assert record_engine.BEST is record_engine.COMPILED
    for compiled, reference in zip(record_engine.COMPILED, record_engine.REFERENCE, strict=True):
        assert compiled is not reference


@pytest.mark.parametrize("part", ["forwarder", "session", "subscription", "account"])
def test_the_twin_has_every_public_name_of_its_reference(part: str) -> None:
    if engine.COMPILED is None:
        pytest.skip("the compiled forwarder was not built")
    reference, compiled = getattr(engine.REFERENCE, part), getattr(engine.COMPILED, part)
    assert {name for name in vars(reference) if not name.startswith("_")} <= set(dir(compiled))
