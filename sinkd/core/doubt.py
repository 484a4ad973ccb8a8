"""What a vote is worth of a member whose machine has been started anew since its journal was written.

That everything up to entry i was synced is durable only with the next sync. So when the power goes, damage to what was
synced last looks like a torn write that nobody was told about: a member may have lost what it has said to hold, and not
know it. Peers that were up remember (`Seen`). Where all lose power at once, nobody does.

So such a member is in *doubt*. An entry that is committed stands on a majority; an election must find one of those that
still has it. No more than d = (n - 1) // 2 of n disks are damaged at a time, and only disks of voters in doubt without
being known: with s of them a candidate needs a majority and min(s, d) votes more, which is all three of three.

Doubt ends when the member holds all that a leader held, which was elected like that; and after `RAFT_DOUBT_MS_MAX`, for
a machine that does not come back must not stop the others for ever. Then votes count as ever.
"""


def votes_needed(members: int, doubtful: int) -> int:
    """How many of `members` have to vote for a candidate, itself included, if so many of the voters are in doubt."""
    majority = members // 2 + 1
    spoilt = min(doubtful, (members - 1) // 2)
    return max(majority, members - majority + 1 + spoilt)
