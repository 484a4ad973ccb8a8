"""How a group begins: every order in which three sinks come, go, crash and lose their disks before it is there."""

import itertools
import random

import msgspec
import pytest

from sinkd.core.birth import ACTIVE, CHOSEN, UNBORN, Step, next_step
from sinkd.core.raft_messages import Hello

SINKS = ("s1", "s2", "s3")


def hello(node: str, state: str = UNBORN, group: str = "", configured: tuple[str, ...] = SINKS) -> Hello:
    return Hello("acme", "eu", 0, node, group, state, "", "disk", "journal", configured, f"{node}:6334")


def among(*hellos: Hello) -> dict[str, Hello]:
    return {one.node: one for one in hellos}


def test_nothing_begins_before_all_are_here():
    step = next_step(hello("s1"), among(hello("s2")))
    assert step.waits == "the group begins when all its sinks are up; missing: s3"


def test_the_first_by_name_chooses_and_the_others_take_it_over():
    assert next_step(hello("s1"), among(hello("s2"), hello("s3"))) == Step(CHOSEN, "")
    assert next_step(hello("s2"), among(hello("s1"), hello("s3"))).waits == "s1 chooses the group"
    assert next_step(hello("s2"), among(hello("s1", CHOSEN, "g"), hello("s3"))) == Step(CHOSEN, "g")
    # It crashed when one had taken over, and comes back with an empty disk: what was chosen stays.
    assert next_step(hello("s1"), among(hello("s2", CHOSEN, "g"), hello("s3"))) == Step(CHOSEN, "g")


def test_a_sink_is_active_when_all_have_chosen():
    own = hello("s1", CHOSEN, "g")
    assert next_step(own, among(hello("s2", CHOSEN, "g"), hello("s3"))).waits == "s3 not yet chosen"
    assert next_step(own, among(hello("s2", CHOSEN, "g"), hello("s3", CHOSEN, "g"))) == Step(ACTIVE, "g")


def test_one_that_is_active_tells_the_rest():
    # That it is active means that this one had chosen, too.
    assert next_step(hello("s1", CHOSEN, "g"), among(hello("s2", ACTIVE, "g"))) == Step(ACTIVE, "g")


def test_an_empty_disk_comes_too_late_for_a_group_that_is_there():
    assert next_step(hello("s1"), among(hello("s2", ACTIVE, "g"))) == Step(ACTIVE, "g", is_late=True)


def test_files_that_name_other_sinks_are_reported():
    step = next_step(hello("s1"), among(hello("s2"), hello("s3", configured=("s1", "s2", "s3", "s4"))))
    assert step.waits == "the files of s3 name other sinks than this one's"


def test_data_of_two_groups_never_mixes():
    for state, other in itertools.product((CHOSEN, ACTIVE), repeat=2):
        step = next_step(hello("s1", CHOSEN, "g"), among(hello("s2", state, "h"), hello("s3", other, "g")))
        assert step.waits.startswith("the sinks hold data of 2 groups: s1 g")


def test_data_of_a_group_that_is_over_hold_nobody_up():
    successor = msgspec.structs.replace(hello("s2", ACTIVE, "h"), succeeds=("f", "g"))
    assert next_step(hello("s1"), among(successor, hello("s3", ACTIVE, "g"))) == Step(ACTIVE, "h", is_late=True)


def test_a_sink_alone_begins_at_once():
    alone = ("s1",)
    assert next_step(hello("s1", configured=alone), {}) == Step(CHOSEN, "")
    assert next_step(hello("s1", CHOSEN, "g", alone), {}) == Step(ACTIVE, "g")


@pytest.mark.parametrize("seed", range(200))
def test_whatever_happens_there_is_one_group_and_nobody_votes_who_has_forgotten(seed):
    """Sinks see each other at times, crash, and lose their disks, at most one that has ever been active."""
    rng = random.Random(seed)
    now = {name: hello(name) for name in SINKS}
    was_active: set[str] = set()
    for _ in range(60):
        name = rng.choice(SINKS)
        if rng.random() < 0.1 and was_active <= {name}:
            now[name] = hello(name)  # its disk is gone
            if name in was_active:
                break  # one more loss and the promise does not hold
            continue
        seen = among(*(one for one in now.values() if one.node != name and rng.random() < 0.8))
        if now[name].state == ACTIVE:
            continue
        step = next_step(now[name], seen)
        assert not step.waits.startswith("the sinks hold data"), step
        if step.waits:
            continue
        now[name] = hello(name, step.state, step.group or f"group of {name}")
        if step.state == ACTIVE and not step.is_late:
            was_active.add(name)
    for _ in range(10):  # all are up: it comes to an end
        for name in SINKS:
            if now[name].state != ACTIVE:
                step = next_step(now[name], among(*(one for one in now.values() if one.node != name)))
                if not step.waits:
                    assert not step.is_late or any(one.state == ACTIVE for one in now.values())
                    now[name] = hello(name, step.state, step.group or f"group of {name}")
    assert {one.state for one in now.values()} == {ACTIVE}
    assert len({one.group for one in now.values()}) == 1
