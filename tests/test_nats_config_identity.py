"""Users, permissions and accounts of a nats.conf, as our users."""

from typing import Any

import pytest
from support import natsconf

NKEY = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"


def _users(text: str) -> list[dict[str, Any]]:
    tables, _ = natsconf.imported(text)
    found: list[dict[str, Any]] = tables.data.get("users", [])
    return found


def _permissions(text: str) -> dict[str, Any]:
    """Of one user whose `permissions` are `text`."""
    (user,) = _users(f"authorization {{ users [ {{ user: a, password: b, permissions: {text} }} ] }}")
    found: dict[str, Any] = user.get("permissions", {})
    return found


def test_one_user_or_one_token() -> None:
    assert _users("authorization { user: a, pass: b }") == [{"user": "a", "password": "b"}]
    assert _users("authorization { token: t }") == [{"token": "t"}]


def test_users_of_all_kinds() -> None:
    users = f"{{user: a, password: b}}, {{ username: c, pass: $2a$04$x }}, {{ nkey: {NKEY} }}"
    text = f"authorization {{ users = [ {users} ] }}"

    assert _users(text) == [{"user": "a", "password": "b"}, {"user": "c", "password": "$2a$04$x"}, {"nkey": NKEY}]


def test_a_key_that_is_only_a_variable_is_no_credential() -> None:
    text = "authorization { PASS: secret\n users = [ {user: a, password: $PASS} ] }"

    assert _users(text) == [{"user": "a", "password": "secret"}]


def test_accounts_have_users_of_their_own() -> None:
    text = (
        "accounts { A { users [ {user: a, password: b} ] }, B {} }\nauthorization { users [ {user: c, password: d} ] }"
    )
    tables, configuration = natsconf.imported(text)

    assert set(configuration.accounts) == {"A", "B"}
    assert {(user.user, user.account) for user in configuration.users} == {("a", "A"), ("c", "$G")}
    assert str(tables.origins["accounts", "B"]) == "nats.conf:1:52 B"


def test_accounts_may_be_names_alone() -> None:
    assert natsconf.imported("accounts [A, B ]")[1].accounts == ("A", "B")


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        ('{ publish: "a.>" }', {"publish": {"allow": ["a.>"]}}),
        ('{ pub: ["a", "b.*"] }', {"publish": {"allow": ["a", "b.*"]}}),
        ("{ publish { allow: a, deny: [b ] } }", {"publish": {"allow": ["a"], "deny": ["b"]}}),
        ('{ subscribe: "a  q.*" }', {"subscribe": {"allow": ["a q.*"]}}),
        ("{ import: a, export: b }", {"publish": {"allow": ["a"]}, "subscribe": {"allow": ["b"]}}),
        ("{}", {}),
        ("{ publish {} }", {}),
        ("{ publish { allow: [] } }", {}),  # as in nats-server: everything
        ("{ allow_responses: false }", {}),
        (
            "{ allow_responses: true }",
            {"publish": {"allow": []}, "allow_responses": {"max": 1, "expires": "2m"}},
        ),
        (
            '{ publish { deny: x }, allow_responses { max: 5, expires: "1m" } }',
            {"publish": {"allow": [], "deny": ["x"]}, "allow_responses": {"max": 5, "expires": "1m"}},
        ),
        (
            '{ allow_responses { max: -1, expires: "-1s" } }',
            {"publish": {"allow": []}, "allow_responses": {"max": 2**31 - 1, "expires": "36500d"}},
        ),
    ],
)
def test_permissions_in_all_forms(text: str, ours: dict[str, Any]) -> None:
    assert _permissions(text) == ours


def test_default_permissions_are_for_users_without_their_own() -> None:
    text = """
    authorization {
      users = [
        {user: a, password: x}
        {user: b, password: x, permissions: {}}
        {user: c, password: x, permissions: {publish: c}}
      ]
      default_permissions: { publish: d }
    }
    accounts { A { default_permissions { subscribe: e }, users [ {user: f, password: x} ] } }
    """
    found = {user["user"]: user.get("permissions") for user in _users(text)}

    assert found == {
        "a": {"publish": {"allow": ["d"]}},
        "b": None,
        "c": {"publish": {"allow": ["c"]}},
        "f": {"subscribe": {"allow": ["e"]}},
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("authorization { user: a, pass: b, token: c }", "1:1: authorization: cannot have a user/pass and a token"),
        (
            "authorization { user: a, pass: b, users [] }",
            "1:1: authorization: can not have a single user/pass and a users array",
        ),
        (
            "authorization { token: t }\naccounts { A { users [ {user: a, pass: b} ] } }",
            "1:1: authorization: can not have a token and accounts",
        ),
        ("authorization { pass: b }", "1:17: pass: a password without a user"),
        ("authorization { users: a }", '1:17: users: must be a list [ ... ], got "a"'),
        ("authorization { users [ a ] }", '1:25: expected user entry to be a map/struct, got "a"'),
        ("authorization { users [ {pass: a} ] }", "1:25: user entry requires a user"),
        (
            f"authorization {{ users [ {{user: a, nkey: {NKEY}}} ] }}",
            "1:25: nkey users do not take usernames or passwords",
        ),
        (
            "authorization { users [ {user: a, pass: b, permissions: {publish: 'a..b'}} ] }",
            '1:58: publish: subject "a..b" is not a valid subject',
        ),
        ("authorization { user: a, pass: b, zip: 1 }", '1:35: unknown field "zip"'),
        ("accounts { $G {} }", '1:12: $G: "$G" is a Reserved Account'),
        (
            "authorization { auth_callout { issuer: x } }",
            "1:17: auth_callout: authorization by a service (auth callout)",
        ),
        ("accounts { A { exports [ {stream: a} ] } }", "1:16: exports: exporting to other accounts is not available"),
        ("accounts { A { jetstream: enabled } }", "1:16: jetstream: JetStream is not available"),
        ("accounts { $SYS {} }", "1:12: $SYS: the system account is not available"),
        (
            "authorization { users [ {user: a, pass: b, allowed_connection_types: [WEBSOCKET]} ] }",
            "1:44: allowed_connection_types: connections of type WEBSOCKET are not available",
        ),
    ],
)
def test_what_is_wrong_or_not_available_is_named_with_its_place(text: str, problem: str) -> None:
    (found,) = natsconf.problems(text)

    assert found.startswith(f"nats.conf:{problem}")
