# Part of _forwarding.pyx: route plans. The reference is `Plan`, `Plans` and `Receivers` in `gateway.core.forwarding`.

cdef enum:  # `Scope`
    ANYWHERE = 0
    HERE = 1
    ZONE = 2
    BORDER = 3


@cython.final
@cython.no_gc
cdef class Receivers:
    """Who gets a message: clients, one of each group, and peers."""

    cdef list plain  # of clients' subscriptions
    cdef list groups  # of lists of clients' subscriptions
    cdef list names  # of the groups
    # Of lists of peers' subscriptions, as `groups`; None where no peer wants anything: those of workers of this gateway,
    # of other gateways of the zone, of other zones.
    cdef list near, far, beyond
    # Their sessions (or None): first those with plain subscribers, `counted_peers` of them, then those that are sent
    # everything, up to `plain_peers`; then those that have but members of groups.
    cdef list peers
    cdef Py_ssize_t counted_peers, plain_peers
    cdef Py_ssize_t count  # of pointers in all of that


cdef bint _is_peers(entry):
    return (<Subscription>entry).session.is_peer


cdef bint _is_near(entry):
    return (<Subscription>entry).session.near


cdef bint _is_beyond(entry):
    return (<Subscription>entry).session._zone != ""


cdef bint _reaches(Session sender, entry):
    """As in the reference; `sender` None stands for ourselves."""
    cdef Session receiver = (<Subscription>entry).session
    cdef int scope = ANYWHERE if sender is None else sender.scope_number
    if scope == ANYWHERE:
        return not receiver.spare
    if scope == HERE:
        return not receiver.is_peer
    if scope == ZONE:
        return receiver._zone == ""
    return receiver.scope_number == ZONE and receiver._zone == sender._zone


cdef Receivers _arrange(list plain, dict queues, Session sender):
    cdef Receivers receivers = Receivers.__new__(Receivers)
    cdef list members
    cdef bint has_peers = False
    if sender is not None and sender.scope_number == BORDER:
        has_peers = True  # not for our own clients
    receivers.plain = plain
    receivers.names = receivers.groups = _NONE
    if queues is not None:
        receivers.names, receivers.groups = list(queues), list(queues.values())
    receivers.count = PyList_GET_SIZE(plain) + LIST_POINTERS * PyList_GET_SIZE(receivers.groups)
    for entry in plain:
        has_peers = has_peers or _is_peers(entry)
    for members in receivers.groups:
        receivers.count += PyList_GET_SIZE(members)
        for entry in members:
            has_peers = has_peers or _is_peers(entry)
    if has_peers:
        _part(receivers, sender)
    return receivers


cdef _leave_reached(Receivers receivers, Session sender):
    """Takes out what a message of `sender` may not go to."""
    cdef list members, names = [], groups = []
    receivers.plain = [entry for entry in receivers.plain if _reaches(sender, entry)]
    for name, members in zip(receivers.names, receivers.groups):
        members = [entry for entry in members if _reaches(sender, entry)]
        if members:
            names.append(name)
            groups.append(members)
    receivers.names, receivers.groups = names, groups


cdef _part(Receivers receivers, Session sender):
    """Clients' subscriptions from those of peers."""
    cdef list members, groups, routed
    _leave_reached(receivers, sender)
    groups = [[entry for entry in members if _is_peers(entry)] for members in receivers.groups]
    routed = [entry for entry in receivers.plain if _is_peers(entry)]
    cdef dict peers = dict.fromkeys([(<Subscription>entry).session for entry in routed if (<Subscription>entry).weight])
    receivers.counted_peers = len(peers)
    for entry in routed:
        peers[(<Subscription>entry).session] = None
    receivers.plain_peers = len(peers)
    receivers.count += 3 * LIST_POINTERS * len(groups)
    for members in groups:
        for entry in members:
            peers[(<Subscription>entry).session] = None
    receivers.peers = list(peers)
    receivers.near = [[entry for entry in members if _is_near(entry)] for members in groups]
    receivers.far = [[entry for entry in members if not _is_near(entry) and not _is_beyond(entry)] for members in groups]
    receivers.beyond = [[entry for entry in members if _is_beyond(entry)] for members in groups]
    receivers.plain = [entry for entry in receivers.plain if not _is_peers(entry)]
    receivers.groups = [[entry for entry in members if not _is_peers(entry)] for members in receivers.groups]


@cython.final
@cython.no_gc
cdef class Plan:
    cdef bytes head  # b"HMSG <subject> "
    cdef const char* subject  # in `head`
    cdef Py_ssize_t subject_size
    cdef uint64_t mixed
    cdef uint32_t bucket
    cdef uint64_t generation
    cdef int kind
    cdef bint is_unkept
    cdef Receivers receivers
    cdef Lane lane  # of events on it that ask nothing, or None
    cdef bytes key  # of theirs
    cdef Py_ssize_t size_bytes


cdef inline uint64_t _mix(const char* text, Py_ssize_t size) noexcept nogil:
    """Spreads subjects over the table. Not a defence: subjects made to collide only drive each other out of it."""
    cdef uint64_t mixed = <uint64_t>size * 0x9E3779B97F4A7C15u
    cdef uint64_t word
    while size >= 8:
        memcpy(&word, text, 8)
        mixed = (mixed ^ word) * 0xFF51AFD7ED558CCDu
        mixed ^= mixed >> 32
        text += 8
        size -= 8
    if size > 0:
        word = 0
        memcpy(&word, text, size)
        mixed = (mixed ^ word) * 0xFF51AFD7ED558CCDu
        mixed ^= mixed >> 32
    mixed *= 0xC4CEB9FE1A85EC53u
    return mixed ^ (mixed >> 29)


cdef void _retire(PyObject* held):
    """Sessions may hold a plan longer than the table does: what is large of it goes now, and it is never valid again."""
    cdef Plan plan = <Plan>held
    plan.receivers = plan.lane = None
    plan.generation = _NEVER
    Py_DECREF(plan)


@cython.final
cdef class Plans:
    """The route plans of one account for one set of permissions: a table of sets of `WAYS` plans.

    A subject is kept when it comes for the second time, as far as a small table of marks remembers the first; what
    comes once, like the inbox of a request, uses the one plan `passing` and leaves no trace. What is found moves one
    place forward in its set, what is new takes the last place: nothing ever has to be searched for a victim.
    """

    cdef Account account
    cdef PyObject** slots
    cdef uint32_t sets
    cdef Py_ssize_t count
    cdef Py_ssize_t size_bytes
    cdef Plan passing
    cdef uint32_t seen[SEEN]

    def __cinit__(self):
        self.passing = Plan.__new__(Plan)
        self.sets = SETS_MIN
        self.slots = <PyObject**>calloc(self.sets * WAYS, sizeof(PyObject*))
        if self.slots == NULL:
            raise MemoryError

    def __init__(self, Account account):
        self.account = account

    def __len__(self):
        return self.count

    def __dealloc__(self):
        self._drop_all()
        free(self.slots)

    cdef void _drop_all(self):
        cdef Py_ssize_t i
        cdef PyObject* plan
        for i in range(self.sets * WAYS):
            plan = self.slots[i]
            if plan != NULL:
                self.slots[i] = NULL
                _retire(plan)
        self.count = self.size_bytes = 0

    cdef inline Plan find(self, const char* subject, Py_ssize_t size, uint64_t mixed):
        cdef PyObject** places = self.slots + (mixed & (self.sets - 1)) * WAYS
        cdef PyObject* found
        cdef int i
        for i in range(WAYS):
            found = places[i]
            if found != NULL and (<Plan>found).mixed == mixed and (<Plan>found).subject_size == size:
                if memcmp((<Plan>found).subject, subject, size) == 0:
                    if i > 0:
                        places[i] = places[i - 1]
                        places[i - 1] = found
                    return <Plan>found
        return None

    cdef keep(self, Plan plan):
        if self.size_bytes + plan.size_bytes > _PLAN_BYTES_MAX:
            self._drop_all()
        if self.count > (self.sets * WAYS) // 4 * 3 and self.sets * 2 <= _SETS_MAX:
            self._grow()
        Py_INCREF(plan)
        self._place(plan)
        self.size_bytes += plan.size_bytes

    cdef _place(self, Plan plan):
        cdef PyObject** places = self.slots + (plan.mixed & (self.sets - 1)) * WAYS
        cdef PyObject* victim
        cdef int i
        for i in range(WAYS):
            if places[i] == NULL:
                places[i] = <PyObject*>plan
                self.count += 1
                return
        victim = places[WAYS - 1]
        places[WAYS - 1] = <PyObject*>plan
        self.size_bytes -= (<Plan>victim).size_bytes
        _retire(victim)

    cdef _grow(self):
        cdef PyObject** old = self.slots
        cdef Py_ssize_t i, before = self.sets * WAYS
        cdef PyObject** grown = <PyObject**>calloc(before * 2, sizeof(PyObject*))
        if grown == NULL:
            raise MemoryError
        self.slots = grown
        self.sets *= 2
        self.count = 0
        for i in range(before):
            if old[i] != NULL:
                self._place(<Plan>old[i])
        free(old)

    cdef resized(self, Plan plan, Py_ssize_t before_bytes):
        """A plan that is held was renewed, and has other receivers than before."""
        self.size_bytes += plan.size_bytes - before_bytes
        if self.size_bytes > _PLAN_BYTES_MAX:
            receivers, lane, generation = plan.receivers, plan.lane, plan.generation
            self._drop_all()
            plan.receivers, plan.lane, plan.generation = receivers, lane, generation
            self.keep(plan)

    cdef Plan candidate(self, uint64_t mixed):
        """A plan to fill in: one to keep if this subject has been here lately, else the one for those that pass."""
        cdef uint32_t* place = self.seen + (mixed & (SEEN - 1))
        cdef uint32_t mark = <uint32_t>(mixed >> 32)
        if place[0] == mark:
            return Plan.__new__(Plan)
        place[0] = mark
        return self.passing
