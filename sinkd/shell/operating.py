"""What an operator may ask of a sink: how it is, and to change who the members of its group are and who leads it."""

from typing import TYPE_CHECKING, Any

from protocol.errors import LogError
from protocol.limits import RAFT_DOUBT_MS_MAX
from protocol.link import AcceptLoss, Attest, GiveUp, Message, Prove, Statement
from sinkd.core.raft_messages import Hello
from sinkd.core.replication import Follower, Phase
from sinkd.shell.raft import STATES
from sinkd.shell.repairing import Repair

if TYPE_CHECKING:
    from sinkd.shell.replica import Replica
    from sinkd.shell.sink import Sink

JOIN_LAG_ENTRIES_MAX = 1_000  # a sink that is added lacks no more than this, so that the group hardly waits for it


class Operator:
    """What there is to say and to change of one Raft group of a sink."""

    def __init__(self, sink: "Sink", replica: "Replica") -> None:
        self._sink, self._replica = sink, replica

    # -- looking ------------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Everything as plain values for JSON; docs/cli.md names them."""
        sink, replica, group, member = self._sink, self._replica, self._replica.group, self._replica.group.member
        return {
            "node": sink.node.name,
            "zone": sink.node.zone,
            "number": replica.number,
            "groups": len(sink.replicas),
            "group": replica.folder.identity.group,
            "state": "leader" if group.leads else STATES[member.state],
            "member": member.is_member,
            "leader": group.leader,
            "term": group.term,
            "commit_index": group.commit_index,
            "applied_index": group.applied_index,
            "last_index": replica.journal.last_index,
            "last_term": replica.journal.term(replica.journal.last_index) if len(replica.journal) else 0,
            "checkpoint_index": replica.checkpoint_index,
            "muted": member.muted,
            "waits": self.why_nobody_leads(),
            "busy": member.busy,
            "filling": replica.filling.now if replica.filling is not None else "",
            "members": dict(member.members),
            "peers": self.peers(),
            "fsync": sink.node.fsync,
            "scrub": {**replica.scrubber.progress._asdict(), "mended": replica.scrubber.mended},
            "damaged": list(replica.scrubber.damaged.values()),
            "suspected": list(replica.scrubber.suspected.values()),
            "digests": sink.comparing.facts() if replica.number == 0 else None,
            "journal_bytes": replica.journal.size_bytes,
            "journal_files": replica.journal.file_count,
            "hot_bytes": replica.store.hot_bytes,
            "free_bytes": sink.free_bytes,
            "storage_full": sink.is_storage_full(),
            "revision": replica.machine.state.revision,
            "configuration_problems": list(sink.config_problems),
            "last_error": sink.last_error,
            "logs": self._logs(),
            "rebuild": sink.rebuilding.facts() if replica.number == 0 and group.leads else None,
            "coverage": sink.coverage.status(replica),
            "mirrors": [row for row in sink.mirroring.rows() if row["group"] == replica.number],
        }

    def why_nobody_leads(self) -> str:
        """What the group lacks, and what to do about it; "" while somebody leads, or soon will."""
        peers = self._replica.peers
        if peers is None or self._replica.group.leader:
            return ""
        return peers.waits or self.too_few() or self._doubts()

    def _doubts(self) -> str:
        if not self._replica.group.member.is_doubtful:
            return ""
        seconds = RAFT_DOUBT_MS_MAX // 1000
        return f"its machine was started anew and the end of its journal may be missing: waits {seconds} s for all"

    def too_few(self) -> str:
        """Why the members that are up and whole are no majority; "" if they are, or there are no members yet."""
        peers, member = self._replica.peers, self._replica.group.member
        if peers is None or not member.members:
            return ""
        hellos = {**peers.hellos, member.name: peers.hello()}
        down = sorted(member.members.keys() - hellos.keys())
        muted = {
            name: hellos[name].muted for name in sorted(member.members.keys() & hellos.keys()) if hellos[name].muted
        }
        count, needed = len(member.members) - len(down) - len(muted), len(member.members) // 2 + 1
        if count >= needed:
            return ""
        parts = [f"{count} of {len(member.members)} members are up and whole, {needed} are needed to go on"]
        if down:
            parts.append(f"down: {', '.join(down)}: start them with the disks that they had")
        parts += [f"{name} may not vote: {why}" for name, why in muted.items()]
        parts.append("if their disks are lost for good: mesh repair")
        return "; ".join(parts)

    def peers(self) -> list[dict[str, Any]]:
        """The other sinks of the zone: what they said, and what this one knows of them if it leads."""
        peers, member = self._replica.peers, self._replica.group.member
        if peers is None:
            return []
        hellos, errors = peers.hellos, peers.links.errors
        names = sorted((set(self._sink.zone.sinks) | set(member.members) | set(hellos)) - {member.name})
        return [
            {
                "node": name,
                "member": name in member.members,
                "connected": name in hellos,
                "error": "" if name in hellos else errors.get(name, "not connected yet"),
                **self._said(hellos.get(name)),
                **self._follows(member.followers.get(name)),
            }
            for name in names
        ]

    @staticmethod
    def _said(hello: Hello | None) -> dict[str, Any]:
        return {"muted": hello.muted, "disk": hello.disk} if hello is not None else {}

    def _follows(self, follower: Follower | None) -> dict[str, Any]:
        if follower is None:
            return {}
        lag = self._replica.journal.last_index - follower.match_index
        phase = follower.phase.value
        return {"match_index": follower.match_index, "lag_entries": lag, "phase": phase, "why": follower.why}

    def _logs(self) -> list[dict[str, Any]]:
        sizes = {(one.stream.incarnation, one.number): one.size_bytes for one in self._replica.store.partitions}
        return [
            {
                "stream": stream.name,
                "partition": number,
                "start_offset": partition.start_offset,
                "end_offset": partition.end_offset,
                "bytes": sizes.get((stream.incarnation, number), 0),
                "retired": stream.retired,
                "given_up": [[one.base_offset, one.next_offset - 1] for one in partition.damaged],
            }
            for stream, number, partition in self._replica.machine.partitions()
        ]

    # -- certificates -------------------------------------------------------------------------------------------------

    async def certify(self, asked: Statement | Attest | Prove) -> tuple[Message, bytes]:
        """The answer and its tail. LogError: see `Attesting`."""
        return await self._sink.attesting.answer(self._replica, asked)

    # -- changing -----------------------------------------------------------------------------------------------------

    async def change_members(self, add: str, remove: str, source: str = "") -> None:
        """Adds sink `add`, which must hold nearly everything already, or removes sink `remove`; on the leader alone.
        `source` is the address that asked for it.

        LogError INVALID_REQUEST: it cannot be done so; LEADER_NOT_AVAILABLE: another one leads, or leads now.
        """
        members = dict(self._replica.group.member.members)
        if add:
            members[add] = self._address_of(add)
        if remove:
            if remove not in members:
                known = ", ".join(sorted(members))
                raise LogError("INVALID_REQUEST", f"sink {remove} is no member; members are {known}")
            if remove == self._sink.node.name:
                self.transfer("", source)
                raise LogError("LEADER_NOT_AVAILABLE", f"sink {remove} leads: it hands over first; ask the next leader")
            del members[remove]
        with self._sink.audit.asked_by(source):
            await self._replica.group.change_members(members)

    def _address_of(self, name: str) -> str:
        """The raft address of a sink that may be added now."""
        group, peers = self._replica.group, self._replica.peers
        if peers is None:
            what = "this sink is the only one of its zone: name the others in the file of every sink and restart them"
            raise LogError("INVALID_REQUEST", what)
        if not group.leads:
            raise LogError("LEADER_NOT_AVAILABLE", f"another sink leads: {group.leader or 'not known which'}")
        if name in group.member.members:
            raise LogError("INVALID_REQUEST", f"sink {name} is a member already")
        hello, follower = peers.hellos.get(name), group.member.followers.get(name)
        if hello is None or follower is None:
            why = peers.links.errors.get(name, "it has never been seen")
            raise LogError("INVALID_REQUEST", f"sink {name} is not connected to the leader: {why}")
        lag = self._replica.journal.last_index - follower.match_index
        # One that may not vote yet would count in majorities and help none: the group could bear no loss until it may.
        if follower.phase is not Phase.REPLICATE or lag > JOIN_LAG_ENTRIES_MAX or hello.muted:
            why = follower.why or hello.muted or f"it lacks {lag} entries"
            raise LogError("INVALID_REQUEST", f"sink {name} is still being filled ({why}); try again when it is whole")
        return hello.address

    def scrub(self) -> None:
        """Begins a round; `status` says how far it is."""
        self._replica.scrubber.begin()

    async def accept_loss(self, asked: AcceptLoss, source: str = "") -> None:
        """Goes on with what this sink holds. LogError: see `Repair`."""
        await Repair(self._sink, self._replica).accept_loss(asked, source)

    async def give_up(self, asked: GiveUp, source: str = "") -> list[dict[str, Any]]:
        """What nobody has of a partition; what of that is asked for is given up. LogError: see `GivingUp`."""
        return await self._replica.giving_up.answer(asked, source)

    def transfer(self, to: str, source: str = "") -> None:
        """Begins to hand over. LogError as above."""
        problem = self._replica.group.member.transfer(to)
        if problem:
            raise LogError("INVALID_REQUEST", problem)
        self._sink.audit.leadership_moved(self._replica.number, to, source)

    async def rebuild(self, zone: str, source: str = "") -> None:
        """Old logs of this zone come back from `zone`. LogError as above."""
        if self._replica.number != 0:
            raise LogError("INVALID_REQUEST", "group 0 decides what is brought back")
        await self._sink.rebuilding.begin(zone, source)
