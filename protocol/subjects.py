"""NATS subjects: what is valid, what a pattern matches, when two patterns can meet.

A subject is a sequence of tokens separated by dots; a pattern may hold `*` (exactly one token) anywhere and `>` (one or
more tokens) as its last token. Wildcard characters inside a longer token are ordinary characters.
Source: NATS documentation, 'Subject-Based Messaging'; nats-server `server/sublist.go` (IsValidSubject,
SubjectsCollide).

Subjects are `str`. On the wire they are UTF-8 by convention and any bytes by fact, so both directions go through
`decode` and `encode` here, which let every byte survive.
"""

SYSTEM_TOKENS = frozenset({"$LOG", "$MESH", "$AUDIT", "$COVERAGE", "$SYS"})
"""First tokens that the gateway answers itself: never routed as events, never captured."""
NODE_TOKENS = frozenset({"$AUDIT", "$COVERAGE"})
"""Those of what nodes alone write: no client publishes there."""


def decode(wire: bytes) -> str:
    """The subject that stands on the wire as `wire`; bytes that are not UTF-8 become lone surrogates."""
    return wire.decode("utf-8", "surrogateescape")


def encode(subject: str) -> bytes:
    """The bytes of `subject` on the wire: the inverse of `decode`."""
    return subject.encode("utf-8", "surrogateescape")


def is_valid_pattern(pattern: str) -> bool:
    """Whether `pattern` may be subscribed to: no empty token, no white space, `>` only at the end."""
    if not pattern or any(character in pattern for character in " \t\r\n\f\0"):
        return False
    tokens = pattern.split(".")
    return all(tokens) and ">" not in tokens[:-1]


def is_valid_subject(subject: str) -> bool:
    """Whether `subject` may be published to: a valid pattern without wildcards ('literal')."""
    return is_valid_pattern(subject) and not has_wildcard(subject)


def has_wildcard(pattern: str) -> bool:
    """Whether a token of `pattern` is `*` or `>`."""
    if "*" not in pattern and ">" not in pattern:
        return False
    return any(token in ("*", ">") for token in pattern.split("."))


def is_captured(subject: str) -> bool:
    """Whether an event on `subject` may enter a log: subjects that begin with `_` or `$` never do."""
    return subject[:1] not in ("_", "$")


def matches(pattern: str, subject: str) -> bool:
    """Whether the literal `subject` matches `pattern`."""
    if pattern == ">":
        return True
    pattern_tokens = pattern.split(".")
    subject_tokens = subject.split(".")
    for position, token in enumerate(pattern_tokens):
        if token == ">":
            return len(subject_tokens) > position
        if position >= len(subject_tokens) or token not in ("*", subject_tokens[position]):
            return False
    return len(pattern_tokens) == len(subject_tokens)


def overlap(one: str, other: str) -> bool:
    """Whether some literal subject matches both patterns."""
    one_tokens, other_tokens = one.split("."), other.split(".")
    for mine, theirs in zip(one_tokens, other_tokens, strict=False):
        if mine == ">" or theirs == ">":
            return True
        if mine != theirs and "*" not in (mine, theirs):
            return False
    return len(one_tokens) == len(other_tokens)


def covers(wide: str, narrow: str) -> bool:
    """Whether every subject that matches `narrow` matches `wide` too."""
    wide_tokens, narrow_tokens = wide.split("."), narrow.split(".")
    for position, token in enumerate(wide_tokens):
        if token == ">":
            return len(narrow_tokens) > position
        if position >= len(narrow_tokens) or narrow_tokens[position] == ">":
            return False
        if token != "*" and token != narrow_tokens[position]:
            return False
    return len(wide_tokens) == len(narrow_tokens)
