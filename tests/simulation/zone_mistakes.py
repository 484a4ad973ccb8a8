"""Rules of `sinkd`, each left out: what the simulation of a zone has to notice.

    PYTHONPATH=tests:. .venv/bin/python -m simulation.zone_mistakes --seeds 40

prints, for every one, in how many of so many seeds it does: the table in docs/testing.md.
"""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from simulation.zone import Zone
from sinkd.core import birth, replication
from sinkd.core.raft_messages import MATCHED, Append, Reply
from sinkd.core.replication import Fit, Follower, Mismatch, Phase
from sinkd.shell import files, journal, journal_recovery, raft, segments
from sinkd.shell.filling import Filling
from sinkd.shell.group import Group
from sinkd.shell.journal import Journal
from sinkd.shell.raft import Member
from sinkd.shell.replica import Replica

Patch = pytest.MonkeyPatch
SECONDS = 6.0  # of faults


def f1_an_append_truncates_what_stands_behind_it(patch: Patch) -> None:
    fit = raft.fit

    def as_the_library_does(log: Any, commit: int, prev: int, term: int, terms: Any) -> Fit | Mismatch:
        found = fit(log, commit, prev, term, terms)
        return found if isinstance(found, Mismatch) or prev < log.first_index else Fit(0, prev, found.matched)

    patch.setattr(raft, "fit", as_the_library_does)


def f2_the_commit_index_is_not_clamped(patch: Patch) -> None:
    take, heard = Member._take_append, Member._heard

    def noting(self: Member, name: str, message: Append, tail: bytes) -> None:
        self.unclamped = message.commit_index
        take(self, name, message, tail)

    def unclamped(self: Member, *arguments: Any) -> None:
        heard(self, *arguments[:-1], self.unclamped) if len(arguments) == 5 else heard(self, *arguments)

    patch.setattr(Member, "_take_append", noting)
    patch.setattr(Member, "_heard", unclamped)


def f3_a_follower_says_that_its_own_end_matches(patch: Patch) -> None:
    reply = Member._reply

    def boasting(self: Member, name: str, message: Append, outcome: int, next_index: int, why: str = "") -> None:
        reply(self, name, message, outcome, self._journal.last_index + 1 if outcome == MATCHED else next_index, why)

    patch.setattr(Member, "_reply", boasting)


def j1_answers_leave_before_the_sync(patch: Patch) -> None:
    patch.setattr(Member, "_promise", Member._send)


def j1_a_tick_does_not_wait_for_the_sync(patch: Patch) -> None:
    patch.setattr(Group, "_is_sync_due", lambda self, _: self._journal.has_unsynced_vote)


def j2_term_and_vote_are_not_kept(patch: Patch) -> None:
    def forgetful(self: Journal, term: int, voted_for: str | None) -> None:
        self._term, self._voted_for = term, voted_for

    patch.setattr(Journal, "setCurrentTerm", forgetful)


def j4_the_checkpoint_is_no_witness(patch: Patch) -> None:
    patch.setattr(journal, "_check_against", lambda *_: None)


def j5_a_fill_is_not_marked_as_one(patch: Patch) -> None:
    replace = dataclasses.replace
    patch.setattr(
        "sinkd.shell.replica.dataclasses.replace",
        lambda saved, **changes: replace(saved, **(changes | {"installed_over": 0} if changes else changes)),
    )


def l2_answers_of_older_epochs_are_believed(patch: Patch) -> None:
    replied = Follower.replied

    def credulous(self: Follower, reply: Reply, end: int, now: float) -> None:
        fields = reply.term, self.epoch, reply.sequence, reply.outcome, reply.next_index, reply.why
        replied(self, Reply(*fields), end, now)

    patch.setattr(Follower, "replied", credulous)


def l2_and_what_is_probed_is_sent_by_the_window(patch: Patch) -> None:
    """As the library does. Alone neither is seen: one append at a time leaves no older answers on their way."""
    l2_answers_of_older_epochs_are_believed(patch)

    def as_the_library_does(self: Follower) -> bool:
        in_flight, is_paused = len(self._in_flight), self._is_paused or self.phase is Phase.SNAPSHOT
        return in_flight < replication.WINDOW_APPENDS and not is_paused

    patch.setattr(Follower, "may_send", as_the_library_does)


def c5_muted_members_vote_and_stand(patch: Patch) -> None:
    def unmuted(method: Callable[..., Any]) -> Callable[..., Any]:
        def called(self: Member, *arguments: Any) -> Any:
            muted, self.muted = self.muted, ""
            try:
                return method(self, *arguments)
            finally:
                self.muted = muted

        return called

    for name in ("_may_vote", "_ask_prevotes", "_take_prevoted"):
        patch.setattr(Member, name, unmuted(getattr(Member, name)))


def c5_a_new_disk_is_not_muted(patch: Patch) -> None:
    step = birth.next_step
    patch.setattr("sinkd.shell.peers.next_step", lambda *arguments: step(*arguments)._replace(is_late=False))


def c6_a_new_journal_is_taken_for_the_old_one(patch: Patch) -> None:
    connected = Follower.connected
    patch.setattr(Follower, "connected", lambda self, _, end: connected(self, "the same", end))


def c7_votes_in_doubt_count_as_any_other(patch: Patch) -> None:
    patch.setattr(Member, "is_doubtful", False)


def a_failed_fsync_is_tried_again(patch: Patch) -> None:
    sync = Journal.sync

    def patient(self: Journal) -> None:
        try:
            sync(self)
        except OSError:
            self._failed = False
            sync(self)

    patch.setattr(Journal, "sync", patient)


def folders_are_not_synced(patch: Patch) -> None:
    for module in (files, "sinkd.shell.journal_files", "sinkd.shell.folder"):
        target = module if not isinstance(module, str) else None
        if target is not None:
            patch.setattr(target, "sync_folder", lambda _: None)
        else:
            patch.setattr(f"{module}.sync_folder", lambda _: None)


def damage_is_taken_for_a_torn_tail(patch: Patch) -> None:
    patch.setattr(journal_recovery, "find_synced_beyond", lambda *_: None)


def batches_are_not_checked_when_they_are_read(patch: Patch) -> None:
    patch.setattr(segments, "_checked_batches", lambda data, *_: data)


def a_checkpoint_is_installed_without_its_segments(patch: Patch) -> None:
    async def hasty(self: Filling, saved: Any) -> None:
        return

    patch.setattr(Filling, "fill", hasty)


def checkpoints_are_written_before_the_segments(patch: Patch) -> None:
    async def hasty(self: Replica) -> None:
        return

    write = Replica._write_checkpoint

    async def unflushed(self: Replica) -> None:
        self.flush = hasty.__get__(self)
        try:
            await write(self)
        finally:
            del self.flush

    patch.setattr(Replica, "_write_checkpoint", unflushed)


DISK = ("power", "power", "power_of_all", "power_of_all", "pause", "partition", "slow_disk")
LEADERS = ("deaf_leader",)
LOSS = ("worst_moment", "worst_moment", "wipe", "crash")
MISTAKES: dict[Callable[[Patch], None], tuple[str, ...]] = {
    f1_an_append_truncates_what_stands_behind_it: LEADERS,
    f2_the_commit_index_is_not_clamped: LEADERS,
    f3_a_follower_says_that_its_own_end_matches: LEADERS,
    j1_answers_leave_before_the_sync: DISK,
    j1_a_tick_does_not_wait_for_the_sync: DISK,
    j2_term_and_vote_are_not_kept: ("crash", "transfer"),
    j4_the_checkpoint_is_no_witness: ("roll_back", "crash"),
    j5_a_fill_is_not_marked_as_one: ("wipe", "crash_in_call", "crash_in_call"),
    l2_answers_of_older_epochs_are_believed: LEADERS,
    l2_and_what_is_probed_is_sent_by_the_window: LEADERS,
    c5_muted_members_vote_and_stand: ("wipe", "transfer"),
    c5_a_new_disk_is_not_muted: ("wipe", "transfer"),
    c6_a_new_journal_is_taken_for_the_old_one: ("wipe", "cut"),
    c7_votes_in_doubt_count_as_any_other: ("worst_power_cut",),
    a_failed_fsync_is_tried_again: ("failing_fsync", "power", "crash"),
    folders_are_not_synced: DISK,
    damage_is_taken_for_a_torn_tail: ("damage_journal_end", "crash"),
    batches_are_not_checked_when_they_are_read: ("damage", "crash"),
    a_checkpoint_is_installed_without_its_segments: LOSS,
    checkpoints_are_written_before_the_segments: ("power_of_all", "power"),
}
"""Each with the faults that bring it to light soonest."""
MASKED = (
    l2_answers_of_older_epochs_are_believed,
    j5_a_fill_is_not_marked_as_one,
    checkpoints_are_written_before_the_segments,
)
"""Not or seldom seen, as other rules catch what follows (docs/testing.md)."""
SEEN = tuple(mistake for mistake in MISTAKES if mistake not in MASKED)


def problem(mistake: Callable[[Patch], None], seed: int, kinds: tuple[str, ...] | None = None) -> str:
    """What the simulation has to say of it; "" if nothing."""
    with pytest.MonkeyPatch.context() as patch:
        mistake(patch)
        try:
            with Zone(seed, groups=1, kinds=kinds) as zone:
                zone.run(SECONDS)
        except Exception as error:  # noqa: BLE001  # whatever it is, it was noticed
            return f"{type(error).__name__}: {error}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--only", default="")
    parser.add_argument("--mixed", action="store_true", help="with faults of every kind, as the seed has it")
    arguments = parser.parse_args()
    for mistake, kinds in MISTAKES.items():
        if arguments.only in mistake.__name__:
            seeds = range(arguments.seeds)
            found = [text for seed in seeds if (text := problem(mistake, seed, None if arguments.mixed else kinds))]
            name = mistake.__name__.replace("_", " ")
            print(
                f"| {name} | {len(found)} of {len(seeds)} | {found[0].splitlines()[0][:120] if found else ''} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
