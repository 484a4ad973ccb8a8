# Part of _forwarding.pyx: a message as it stands on the wire, taken apart and put together. The reference is
# `protocol.nats`.

cdef struct Message:
    # One message on its way. `rest`: what a canonical publish has behind its subject, to its last CR LF.
    const char* rest
    Py_ssize_t rest_size
    const char* reply
    Py_ssize_t reply_size
    const char* payload
    Py_ssize_t payload_size
    Py_ssize_t header_size  # of the header block in front of the payload
    const char* line_end  # of the control line that it was read from


cdef struct Names:
    # Queue groups in a frame of a peer, each with a space behind it.
    const char* text
    Py_ssize_t size


cdef inline bint _number(const char* text, Py_ssize_t size, Py_ssize_t* value) noexcept nogil:
    """Whether it is a number as we would write it ourselves, of at most nine digits."""
    cdef Py_ssize_t i, total = 0
    cdef int digit
    if size < 1 or size > 9 or (text[0] == c"0" and size > 1):
        return False
    for i in range(size):
        digit = text[i] - c"0"
        if digit < 0 or digit > 9:
            return False
        total = total * 10 + digit
    value[0] = total
    return True


cdef inline Py_ssize_t _word(const char* here, const char* end) noexcept nogil:
    """The size of the word that begins here, with something behind it; 0 for none."""
    cdef const char* start = here
    while here < end and <unsigned char>here[0] > 32:
        here += 1
    return here - start if here < end else 0


cdef inline const char* _words(const char* here, const char* end, const char** words, Py_ssize_t* sizes, int* count) noexcept nogil:
    """Up to three words, single spaces between them, CR LF behind them: where the next line begins, or NULL."""
    cdef Py_ssize_t size
    count[0] = 0
    while count[0] < 3:
        size = _word(here, end)
        if size == 0:
            return NULL
        words[count[0]] = here
        sizes[count[0]] = size
        count[0] += 1
        here += size
        if here[0] == c"\r":
            return here + 2 if end - here > 1 and here[1] == c"\n" else NULL
        if here[0] != c" ":
            return NULL
        here += 1
    return NULL


cdef inline const char* _read_rest(const char* here, const char* end, int numbers, Py_ssize_t max_payload, Message* message) noexcept nogil:
    """What stands behind the subject of a PUB (1 number) or HPUB (2). Where the next line begins.

    NULL: it is not as we would write it ourselves, or not complete.
    """
    cdef const char* words[3]
    cdef Py_ssize_t sizes[3]
    cdef Py_ssize_t total, header_size = 0
    cdef int count
    cdef const char* body = _words(here, end, words, sizes, &count)
    if body == NULL or count < numbers or count > numbers + 1:
        return NULL
    if not _number(words[count - 1], sizes[count - 1], &total) or total > max_payload:
        return NULL
    if numbers == 2:
        if not _number(words[count - 2], sizes[count - 2], &header_size) or header_size == 0 or header_size > total:
            return NULL
    if end - body < total + 2 or body[total] != c"\r" or body[total + 1] != c"\n":
        return NULL
    message.rest = here
    message.rest_size = body + total + 2 - here
    message.reply = words[0]
    message.reply_size = sizes[0] if count > numbers else 0
    message.header_size = header_size
    message.payload = body + header_size
    message.payload_size = total - header_size
    message.line_end = body - 2
    return body + total + 2


cdef char* _put_plain(char* out, Message* message) noexcept:
    """The rest of a MSG for somebody who knows no headers."""
    if message.reply_size:
        memcpy(out, message.reply, message.reply_size)
        out += message.reply_size
        out[0] = c" "
        out += 1
    out += snprintf(out, 24, b"%zd\r\n", message.payload_size)
    memcpy(out, message.payload, message.payload_size)
    out += message.payload_size
    memcpy(out, b"\r\n", 2)
    return out + 2


cdef bytes _head(const char* subject, Py_ssize_t size):
    cdef bytes head = PyBytes_FromStringAndSize(NULL, size + HEAD_BYTES)
    cdef char* text = PyBytes_AS_STRING(head)
    memcpy(text, b"HMSG ", 5)
    memcpy(text + 5, subject, size)
    text[size + 5] = c" "
    return head


cdef bytes _rest(bytes reply, bytes header_block, bytes payload):
    """What stands behind the sid of an HMSG, or of a MSG where there is no header block."""
    if header_block:
        return nats.header_message_tail(reply, header_block, payload)[1:]
    return nats.message_tail(reply, payload)[1:]
