"""Accounts: spaces of subjects that know nothing of each other, and the default one.

A user belongs to one account, a stream takes the events of one; the same subject in two accounts is two subjects.
"""

from typing import Final

from protocol.config_units import parse_name, shown

DEFAULT_ACCOUNT: Final = "$G"
"""The account of all who name no other: always there, never declared. nats-server's name for it."""


def parse_account(value: object) -> str:
    """The account that a user or a stream names; ValueError says what is right."""
    if value == DEFAULT_ACCOUNT:
        return DEFAULT_ACCOUNT
    try:
        return parse_name(value)
    except ValueError:
        raise ValueError(f"must be the name of an account under [accounts], got {shown(value)}") from None
