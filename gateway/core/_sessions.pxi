# Part of _forwarding.pyx: one client connection. The reference is `Session` in `gateway.core.session`.

@cython.final
cdef class Session:
    cdef readonly int64_t id
    cdef readonly str client_ip
    cdef readonly int client_port
    cdef readonly object parser
    cdef Account _account
    cdef readonly dict subscriptions
    cdef str _peer
    cdef bint is_peer
    cdef public bint near
    cdef object _scope
    cdef int scope_number
    cdef str _zone
    cdef public bint spare
    cdef public int64_t interest_mark
    cdef public object learned

    cdef object _options
    cdef bint verbose, pedantic, echo, headers, no_responders
    cdef public bint connected
    cdef public bint info_sent
    cdef public str nonce
    cdef public object tls
    cdef public object verifying
    cdef public object entry
    cdef public str user
    cdef object _permissions
    cdef bint filters, unrestricted, hears_all
    cdef public object answerable

    cdef PyObject* out_object
    cdef char* out
    cdef Py_ssize_t out_size
    cdef Py_ssize_t out_room
    cdef Py_ssize_t out_hint
    cdef public Py_ssize_t unsent_bytes
    cdef public object measure_unsent
    cdef public bint dirty
    cdef public bint paused
    cdef public int stall_ms
    cdef public object closing
    cdef public str closing_detail
    cdef public bint flushes

    cdef public int64_t in_msgs, in_bytes, out_msgs, out_bytes, dropped_msgs, unwanted_msgs
    cdef public int64_t started_ms, last_activity_ms, last_heard_ms, due_ms, ping_due_ms, auth_due_ms
    cdef public int64_t ping_sent_ms, rtt_ms
    cdef public int pings_out

    cdef Plans plans
    cdef Plan last  # that of the message before
    cdef bytes left  # what was received; from `left_at` on it was not looked at yet
    cdef Py_ssize_t left_at
    cdef Py_ssize_t wanted  # what the parser waits for, as its `wanted_bytes`

    def __init__(self, id, str client_ip, int client_port, parser, Account account not None, int64_t now_ms):
        self.id = id
        self.client_ip = client_ip
        self.client_port = client_port
        self.parser = parser
        self._account = account
        self.subscriptions = {}
        self.peer = self.zone = ""
        self.scope = Scope.ANYWHERE
        self.options = nats.ConnectOptions()
        self.nonce = ""
        self.user = ""
        self.permissions = EVERYTHING
        self.closing_detail = ""
        self.flushes = True
        self.started_ms = self.last_activity_ms = self.last_heard_ms = now_ms
        self.auth_due_ms = self.ping_sent_ms = self.rtt_ms = NEVER_MS

    def __dealloc__(self):
        if self.out_object != NULL:
            Py_DECREF(<object>self.out_object)

    @property
    def account(self):
        return self._account

    @account.setter
    def account(self, Account account not None):
        self._account = account
        self.plans = self.last = None

    @property
    def peer(self):
        return self._peer

    @peer.setter
    def peer(self, str name not None):
        self._peer = name
        self.is_peer = name != ""

    @property
    def scope(self):
        return self._scope

    @scope.setter
    def scope(self, scope):
        self._scope, self.scope_number = scope, scope
        self.plans = self.last = None

    @property
    def zone(self):
        return self._zone

    @zone.setter
    def zone(self, str zone not None):
        self._zone = zone
        self.plans = self.last = None

    @property
    def options(self):
        return self._options

    @options.setter
    def options(self, options):
        self._options = options
        self.verbose = options.verbose
        self.pedantic = options.pedantic
        self.echo = options.echo
        self.headers = options.headers
        self.no_responders = options.no_responders

    @property
    def permissions(self):
        return self._permissions

    @permissions.setter
    def permissions(self, permissions):
        self._permissions = permissions
        self.filters = permissions.filters
        self.unrestricted = permissions.unrestricted
        self.hears_all = permissions.hears_all
        self.plans = self.last = None

    @property
    def name(self):
        return self._options.name

    cdef inline bint stopped(self):
        return self.closing is not None or self.verifying is not None or self.paused

    # -- output ----

    cdef inline char* reserve(self, Py_ssize_t size) except NULL:
        """Room for `size` bytes at the end of the output."""
        if self.out_size + size > self.out_room:
            self._grow(size)
        return self.out + self.out_size

    cdef int _grow(self, Py_ssize_t size) except -1:
        cdef Py_ssize_t room = self.out_room * 2
        if room < self.out_size + size:
            room = self.out_size + size
        if room < self.out_hint:
            room = self.out_hint
        if room < OUT_BYTES_MIN:
            room = OUT_BYTES_MIN
        if self.out_object == NULL:
            made = PyBytes_FromStringAndSize(NULL, room)
            Py_INCREF(made)
            self.out_object = <PyObject*>made
            made = None
        elif Py_REFCNT(<object>self.out_object) > 1:  # it was written as it is, and somebody else has it too
            made = PyBytes_FromStringAndSize(NULL, room)
            memcpy(PyBytes_AS_STRING(made), self.out, self.out_size)
            Py_INCREF(made)
            Py_DECREF(<object>self.out_object)
            self.out_object = <PyObject*>made
            made = None
        else:
            try:
                _PyBytes_Resize(&self.out_object, room)
            except MemoryError:  # what was there is gone too
                self.out = NULL
                self.out_size = self.out_room = 0
                raise
        self.out = PyBytes_AS_STRING(<object>self.out_object)
        self.out_room = room
        return 0

    def write(self, bytes data not None):
        cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
        if size == 0:  # nothing to reserve
            return
        if size >= OUT_BYTES_ADOPTED and self.out_object == NULL:
            Py_INCREF(data)
            self.out_object = <PyObject*>data
            self.out = PyBytes_AS_STRING(data)
            self.out_size = self.out_room = size
            return
        memcpy(self.reserve(size), PyBytes_AS_STRING(data), size)
        self.out_size += size

    def take(self):
        if self.out_object == NULL:
            return b""
        cdef PyObject* taken = self.out_object
        cdef Py_ssize_t size = self.out_size
        self.out_object = NULL
        self.out = NULL
        self.out_size = self.out_room = 0
        self.out_hint = min(max(size, self.out_hint // 4 * 3), OUT_BYTES_HINT_MAX)
        _PyBytes_Resize(&taken, size)
        result = <object>taken
        Py_DECREF(result)
        return result

    @property
    def queued_bytes(self):
        return self.out_size

    @property
    def pending_bytes(self):
        if self.measure_unsent is not None:
            self.unsent_bytes = self.measure_unsent()
        return self.out_size + self.unsent_bytes

    # -- rights ----

    def may_publish(self, str subject):
        return self._permissions.may_publish(subject)

    def may_subscribe(self, str pattern, str queue=""):
        return self._permissions.may_subscribe(pattern, queue)

    def may_receive(self, str subject):
        return self._permissions.may_receive(subject)

    def may_answer(self, bytes subject, int64_t now_ms):
        return self.answerable is not None and self.answerable.take(subject, now_ms)
