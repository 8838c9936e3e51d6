"""Rights: who has which for which instance, and what is said to those who do not."""

import pytest

from nl.errors import PermissionDeniedError, UnauthenticatedError
from nl.model import access
from nl.model.access import ALL_RIGHTS, ANY_RIGHT, EVERYONE, Grant, Identity, PeerCertificate, Right, matches

READ = Right.READ_CAS | Right.READ_AC


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("main", "main", True), ("main", "main2", False), ("main", "", False), ("", "", True), ("", "x", False),
        ("*", "", True), ("*", "a/b", True), ("*", "a\nb", True),
        ("pr-*", "pr-", True), ("pr-*", "pr-1/x", True), ("pr-*", "xpr-1", False), ("pr-*", "pr", False),
        ("*/ci", "team/ci", True), ("*/ci", "team/ci2", False),
        ("a*b*c", "a--b--c", True), ("a*b*c", "a--c--b", False),
        ("[ab]", "a", False), ("[ab]", "[ab]", True), ("a?", "ab", False), ("a.", "ab", False),
    ],
)  # fmt: skip
def test_in_patterns_only_the_star_is_special(pattern, text, expected):
    assert matches(pattern, text) is expected


def test_grants_add_up_and_reach_only_their_instances():
    identity = Identity("ci", [Grant(("*",), READ), Grant(("main", "pr-*"), Right.WRITE_AC)])
    assert identity.rights_on("main") == identity.rights_on("pr-7") == READ | Right.WRITE_AC
    assert identity.rights_on("other") == READ
    identity.require(Right.WRITE_AC, "main")
    with pytest.raises(PermissionDeniedError, match="^'ci' does not have write_ac for instance 'other'$"):
        identity.require(Right.READ_AC | Right.WRITE_AC, "other")


def test_who_gave_no_credentials_is_told_to():
    nobody = Identity("anonymous", [Grant(("public",), READ)], is_anonymous=True)
    nobody.require(Right.READ_CAS, "public")
    for right, words in ((Right.WRITE_CAS, "write_cas"), (READ, "read_cas, read_ac"), (ANY_RIGHT, "any right")):
        with pytest.raises(UnauthenticatedError, match=f"^{words} for instance 'main' needs credentials; none were"):
            nobody.require(right, "main")
        assert not nobody.may(right, "main")


def test_any_right_is_enough_to_know_of_an_instance_and_none_is_not():
    identity = Identity("w", [Grant(("main",), Right.REGISTER_WORKERS)])
    identity.require(ANY_RIGHT, "main")
    assert identity.sees("main")
    assert identity.may(ANY_RIGHT, "main")
    assert not identity.sees("other")
    with pytest.raises(PermissionDeniedError, match="any right"):
        identity.require(ANY_RIGHT, "other")


@pytest.mark.parametrize("right", list(Right))
def test_no_right_implies_another(right):
    identity = Identity("one", [Grant(("*",), right)])
    assert [each for each in Right if identity.may(each, "")] == [right]
    assert EVERYONE.may(right, "")
    assert EVERYONE.rights_on("x") == ALL_RIGHTS


def test_names_that_clients_invent_do_not_add_up():
    identity = Identity("one", [Grant(("n1*",), READ)])
    for number in range(1000):
        assert identity.may(READ, f"n{number}") == str(number).startswith("1")
    assert len(identity._known) <= 256


def test_names_as_long_as_a_message_are_not_kept():
    """256 of them, of 4 MB each, were a gigabyte."""
    identity = Identity("one", [Grant(("*",), READ)])
    for number in range(300):
        assert identity.may(READ, f"{number}" + "x" * 10_000)
    assert sum(len(name) for name in identity._known) <= 256 * 200


def test_what_a_pattern_costs_grows_as_the_name_does():
    """Tried again at each star, this took longer than anybody lives."""
    assert not matches("*a*a*a*a*b", "a" * 200_000)
    assert not matches("pr-*-x-*-y", "pr-" + "-x-" * 200_000)
    assert matches("*a*a*a*a*b", "a" * 200_000 + "b")


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("a*a", "a", False), ("a*a", "aa", True), ("ab*bc", "abc", False), ("**", "", True), ("*a**a*", "aa", True),
        ("*a*", "b", False), ("a*b*b", "ab", False), ("a*b*b", "abb", True), ("*ab*ab", "abab", True),
        ("*ab*ab", "aab", False), ("a**", "a", True),
    ],
)  # fmt: skip
def test_what_a_star_stands_for_does_not_overlap(pattern, text, expected):
    assert matches(pattern, text) is expected


def test_what_concerns_many_instances_needs_the_right_for_each():
    identity = Identity("ci", [Grant(("main", "pr"), READ), Grant(("",), Right.READ_CAS)])
    identity.require_everywhere(Right.READ_AC, ["main", "pr"])
    identity.require_everywhere(Right.READ_AC, iter(["main"]))
    for instances in (["main", "other", "pr"], ["pr", "other"], ["other"]):
        with pytest.raises(PermissionDeniedError, match="'other'"):
            identity.require_everywhere(Right.READ_AC, instances)
    identity.require_everywhere(Right.READ_CAS, [])
    with pytest.raises(PermissionDeniedError, match="instance ''"):
        identity.require_everywhere(Right.READ_AC, [])


def test_none_stands_for_at_least_one_instance():
    identity = Identity("ci", [Grant(("main",), READ), Grant(("pr",), Right.EXECUTE)])
    identity.require(Right.EXECUTE, None)
    with pytest.raises(PermissionDeniedError, match="^'ci' does not have administer for any instance$"):
        identity.require(Right.ADMINISTER, None)


def test_only_what_is_missing_is_named_and_a_long_name_is_cut():
    identity = Identity("ci", [Grant(("*",), Right.READ_CAS)])
    with pytest.raises(PermissionDeniedError, match=f"does not have write_cas for instance '{'x' * 200}'$"):
        identity.require(Right.READ_CAS | Right.WRITE_CAS, "x" * 201)


def test_who_is_who_by_default():
    identity = Identity("ci", [])
    assert (identity.is_anonymous, identity.is_revoked, identity.expires_at) == (False, False, float("inf"))
    assert PeerCertificate("x").not_after == float("inf")


def test_patterns_are_matched_once_for_each_name_while_it_is_remembered(monkeypatch):
    asked = []

    def count(pattern, text):
        asked.append(text)
        return matches(pattern, text)

    monkeypatch.setattr(access, "matches", count)
    identity = Identity("one", [Grant(("*",), READ)])
    longest = "x" * access._MAX_REMEMBERED_CHARS
    for _ in range(3):
        assert identity.sees("main") and identity.sees(longest)
    assert asked == ["main", longest]
    for _ in range(3):
        assert identity.sees(longest + "x")
    assert len(asked) == 5
    for number in range(access._MAX_REMEMBERED - 2):
        identity.sees(str(number))
    assert len(identity._known) == access._MAX_REMEMBERED
    identity.sees("one more")
    assert set(identity._known) == {"one more"}
