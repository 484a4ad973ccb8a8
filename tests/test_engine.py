"""Where there is a C compiler the compiled forwarder must be the one that runs: else all speed is gone, silently."""

import shutil
import sysconfig

import pytest

from gateway.core import engine

COMPILER = (sysconfig.get_config_var("CC") or "cc").split()[0]


def test_the_compiled_forwarder_is_loaded_where_it_could_be_built() -> None:
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no C compiler: {COMPILER} is not on the PATH")
    assert engine.COMPILED is not None
    assert engine.BEST is engine.COMPILED
    assert engine.COMPILED.forwarder is not engine.REFERENCE.forwarder


@pytest.mark.parametrize("part", ["forwarder", "session", "subscription", "account"])
def test_the_twin_has_every_public_name_of_its_reference(part: str) -> None:
    if engine.COMPILED is None:
        pytest.skip("the compiled forwarder was not built")
    reference, compiled = getattr(engine.REFERENCE, part), getattr(engine.COMPILED, part)
    assert {name for name in vars(reference) if not name.startswith("_")} <= set(dir(compiled))
