# Part of _forwarding.pyx: subscriptions that come and go as most do, SUB and UNSUB of clients. The reference is
# `gateway.core.plane`, which does all others.

cdef Py_ssize_t _manage(Forwarder self, Session session, const char* line, const char* end) except -1:
    """A complete and ordinary SUB or UNSUB: done as the policy would do it. Its size, or 0 for anything else."""
    cdef const char* words[3]
    cdef Py_ssize_t sizes[3]
    cdef bytes sid
    cdef Subscription subscription
    cdef Py_ssize_t most = 0
    cdef int count
    if not session.hears_all or session._account.watches or (self.asks_to_subscribe and not self.tells_peers):
        return 0
    if memcmp(line, b"SUB ", 4) == 0:
        here = _words(line + 4, end, words, sizes, &count)
        if here == NULL or count < 2 or here - line > MANAGED_BYTES_MAX or not _is_pattern(words[0], sizes[0]):
            return 0
        sid = PyBytes_FromStringAndSize(words[count - 1], sizes[count - 1])
        if sid in session.subscriptions:
            return 0
        subscription = Subscription.__new__(Subscription)
        subscription.session = session
        subscription.account = session._account
        subscription.wire_pattern = PyBytes_FromStringAndSize(words[0], sizes[0])
        subscription.wire_queue = PyBytes_FromStringAndSize(words[1], sizes[1]) if count == 3 else None
        subscription.sid = sid
        subscription.weight = 1
        session.subscriptions[sid] = subscription
        session._account.sublist.insert(subscription)
        self.stats.subscriptions += 1
        if self.tells_peers:
            self.policy.subscribed(subscription)
    elif end - line > 8 and not self.tells_peers and memcmp(line, b"UNSUB ", 6) == 0:
        here = _words(line + 6, end, words, sizes, &count)
        if here == NULL or count > 2 or here - line > MANAGED_BYTES_MAX:
            return 0
        if count == 2 and not _number(words[1], sizes[1], &most):
            return 0
        subscription = session.subscriptions.get(PyBytes_FromStringAndSize(words[0], sizes[0]))
        if subscription is not None:
            if most > subscription.received:
                subscription.max_messages = most
            else:
                _drop(self, subscription)
    else:
        return 0
    session.last_heard_ms = session.last_activity_ms = self.now_ms
    return here - line


cdef _drop(Forwarder self, Subscription subscription):
    """An ordinary subscription ends: as the policy would do it."""
    del subscription.session.subscriptions[subscription.sid]
    self.remove(subscription)
    self.stats.subscriptions -= 1
