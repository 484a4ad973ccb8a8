# Part of _forwarding.pyx: subscriptions, and who is subscribed to a subject. The reference is `gateway.core.sublist`.

@cython.final
@cython.no_gc
cdef class Subscription:
    cdef readonly Session session
    cdef readonly Account account
    cdef bytes wire_pattern
    cdef bytes wire_queue
    cdef readonly bytes sid
    cdef public int64_t max_messages
    cdef public int64_t received
    cdef public int weight
    cdef public bint closed

    def __init__(self, Session session, str pattern, str queue, bytes sid, Account account=None):
        self.session = session
        self.account = session._account if account is None else account
        self.wire_pattern = _encode(pattern)
        self.wire_queue = _encode(queue) if queue else None
        self.sid = sid
        self.weight = 1

    @property
    def pattern(self):
        return _decode(self.wire_pattern)

    @property
    def queue(self):
        return "" if self.wire_queue is None else _decode(self.wire_queue)


@cython.final
@cython.no_gc
cdef class _Node:
    """The entries of one pattern, and in the trie what follows its last token. Parts that are empty are None."""

    cdef dict children
    cdef _Node star
    cdef _Node rest
    cdef dict plain
    cdef dict queues

    cdef bint is_empty(self):
        return not (self.plain or self.queues or self.children or self.star is not None or self.rest is not None)

    cdef add(self, Subscription entry):
        if entry.wire_queue is None:
            if self.plain is None:
                self.plain = {}
            self.plain[entry] = None
            return
        if self.queues is None:
            self.queues = {}
        members = self.queues.get(entry.wire_queue)
        if members is None:
            members = self.queues[entry.wire_queue] = {}
        members[entry] = None

    cdef discard(self, Subscription entry):
        if entry.wire_queue is None:
            del self.plain[entry]
            return
        members = self.queues[entry.wire_queue]
        del members[entry]
        if not members:
            del self.queues[entry.wire_queue]

    cdef _Node child(self, bytes token):
        if token == b"*":
            return self.star
        if token == b">":
            return self.rest
        return None if self.children is None else self.children.get(token)

    cdef set_child(self, bytes token, _Node node):
        if token == b"*":
            self.star = node
        elif token == b">":
            self.rest = node
        elif node is None:
            del self.children[token]
        else:
            if self.children is None:
                self.children = {}
            self.children[token] = node


cdef bint _has_wildcard(bytes pattern):
    if b"*" not in pattern and b">" not in pattern:
        return False
    for token in pattern.split(b"."):
        if token == b"*" or token == b">":
            return True
    return False


cdef inline uint32_t _bucket(const char* subject, Py_ssize_t size) noexcept nogil:
    """Of the first token."""
    cdef uint32_t mixed = 2166136261u
    cdef Py_ssize_t i = 0
    while i < size and subject[i] != c".":
        mixed = (mixed ^ <unsigned char>subject[i]) * 16777619u
        i += 1
    return (mixed ^ (mixed >> 15)) & (BUCKETS - 1)


@cython.final
cdef class Sublist:
    cdef dict literals  # pattern → the one plain subscription to it, or a node
    cdef _Node root
    cdef uint64_t buckets[BUCKETS]  # changes of patterns, by their first token
    cdef uint64_t wild  # changes of patterns whose first token is a wildcard
    cdef readonly Py_ssize_t count
    cdef readonly uint64_t inserts
    cdef readonly uint64_t removes

    def __init__(self):
        self.literals = {}
        self.root = _Node()

    @property
    def generation(self):
        return self.inserts + self.removes

    def insert(self, Subscription entry not None):
        cdef bytes pattern = entry.wire_pattern
        cdef _Node node, child
        if _has_wildcard(pattern):
            node = self.root
            for token in pattern.split(b"."):
                child = node.child(token)
                if child is None:
                    child = _Node()
                    node.set_child(token, child)
                node = child
            node.add(entry)
        else:
            present = self.literals.get(pattern)
            if present is None and entry.wire_queue is None:
                self.literals[pattern] = entry
            elif isinstance(present, _Node):
                (<_Node>present).add(entry)
            else:
                node = self.literals[pattern] = _Node()
                if present is not None:
                    node.add(present)
                node.add(entry)
        self.count += 1
        self.inserts += 1
        self._changed(pattern)

    def remove(self, Subscription entry not None):
        cdef bytes pattern = entry.wire_pattern
        cdef _Node node
        if _has_wildcard(pattern):
            self._remove_wildcard(entry)
        else:
            present = self.literals[pattern]
            if isinstance(present, _Node):
                node = present
                node.discard(entry)
                if node.is_empty():
                    del self.literals[pattern]
            elif present is entry:
                del self.literals[pattern]
            else:
                raise KeyError(entry.pattern)
        self.count -= 1
        self.removes += 1
        self._changed(pattern)

    cdef _remove_wildcard(self, Subscription entry):
        cdef _Node child = self.root
        cdef list path = [child]
        cdef list tokens = entry.wire_pattern.split(b".")
        for token in tokens:
            child = child.child(token)
            if child is None:
                raise KeyError(entry.pattern)
            path.append(child)
        child.discard(entry)
        cdef Py_ssize_t depth = len(tokens)
        while depth > 0 and (<_Node>path[depth]).is_empty():
            (<_Node>path[depth - 1]).set_child(tokens[depth - 1], None)
            depth -= 1

    cdef void _changed(self, bytes pattern):
        cdef const char* text = PyBytes_AS_STRING(pattern)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(pattern)
        if text[0] in (c"*", c">") and (size == 1 or text[1] == c"."):
            self.wild += 1
        else:
            self.buckets[_bucket(text, size)] += 1

    def match(self, str subject):
        plain = []
        queues = self.find(_encode(subject), plain)
        return Result(tuple(plain), tuple([tuple(members) for members in (queues or {}).values()]))

    cdef dict find(self, bytes subject, list plain):
        """Puts all who are subscribed to `subject` and may get it into `plain`; queue → members, or None."""
        cdef dict queues = None
        present = self.literals.get(subject) if self.literals else None
        if present is not None:
            if type(present) is _Node:
                queues = _collect(<_Node>present, subject, plain, queues)
            elif _accepts(present, subject):
                plain.append(present)
        if not self.root.is_empty() and _is_routable(PyBytes_AS_STRING(subject), PyBytes_GET_SIZE(subject)):
            queues = _walk(self.root, subject, 0, plain, queues)
        return queues

    def __iter__(self):
        cdef list stack = [self.root]
        for present in self.literals.values():
            if isinstance(present, _Node):
                stack.append(present)
            else:
                yield present
        while stack:
            node = <_Node>stack.pop()
            yield from list(node.plain or ())
            for members in list((node.queues or {}).values()):
                yield from list(members)
            stack += list((node.children or {}).values())
            if node.star is not None:
                stack.append(node.star)
            if node.rest is not None:
                stack.append(node.rest)


cdef bint _accepts(Subscription entry, bytes subject) except -1:
    cdef Session session = entry.session
    return not session.filters or bool(session._permissions.may_receive(_decode(subject), entry.queue))


cdef bint _is_routable(const char* subject, Py_ssize_t size) noexcept nogil:
    """Whether no token of it is empty."""
    cdef Py_ssize_t i
    cdef char before = c"."
    for i in range(size):
        if subject[i] == c"." and before == c".":
            return False
        before = subject[i]
    return before != c"."


cdef dict _walk(_Node node, bytes subject, Py_ssize_t at, list plain, dict queues):
    """What matches below `node`, from the token on that begins at `at`. As deep as the deepest pattern, not deeper."""
    cdef const char* text = PyBytes_AS_STRING(subject)
    cdef Py_ssize_t end = at, size = PyBytes_GET_SIZE(subject)
    cdef _Node child
    if node.rest is not None:
        queues = _collect(node.rest, subject, plain, queues)
    if node.star is None and node.children is None:
        return queues
    while end < size and text[end] != c".":
        end += 1
    if node.children is not None:
        child = node.children.get(PyBytes_FromStringAndSize(text + at, end - at))
        if child is not None:
            queues = _below(child, subject, end + 1, plain, queues)
    if node.star is not None:
        queues = _below(node.star, subject, end + 1, plain, queues)
    return queues


cdef dict _below(_Node node, bytes subject, Py_ssize_t at, list plain, dict queues):
    if at > PyBytes_GET_SIZE(subject):
        return _collect(node, subject, plain, queues)
    return _walk(node, subject, at, plain, queues)


cdef dict _collect(_Node node, bytes subject, list plain, dict queues):
    if node.plain is not None:
        for entry in node.plain:
            if _accepts(entry, subject):
                plain.append(entry)
    if node.queues is not None:
        for queue, members in node.queues.items():
            kept = [entry for entry in members if _accepts(entry, subject)]
            if kept:
                if queues is None:
                    queues = {}
                queues.setdefault(queue, []).extend(kept)
    return queues


@cython.final
cdef class Account:
    cdef readonly str name
    cdef bytes wire_name
    cdef readonly Sublist sublist
    cdef readonly dict watches

    def __init__(self, str name):
        self.name = name
        self.wire_name = name.encode()
        self.sublist = Sublist()
        self.watches = {}


cdef bint _is_pattern(const char* pattern, Py_ssize_t size) noexcept nogil:
    """Whether it may be subscribed to, among words without white space and control characters."""
    cdef Py_ssize_t i
    if not _is_routable(pattern, size):
        return False
    for i in range(size - 1):
        if pattern[i] == c">" and pattern[i + 1] == c"." and (i == 0 or pattern[i - 1] == c"."):
            return False
    return True


cdef inline bint _is_open(Subscription subscription):
    return not subscription.closed and subscription.session.closing is None
