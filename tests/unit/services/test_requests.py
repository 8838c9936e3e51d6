"""What every service reads from a request in the same way."""

import pytest

from nl.cas.digests import parse_digest
from nl.errors import InvalidRequestError, NotFoundError, PermissionDeniedError
from nl.model.access import ALL_RIGHTS, Grant, Identity, Right
from nl.model.digest import Digest, DigestFunction
from nl.pb import reapi
from nl.services.requests import Instances, parse_function
from tests.unit.services.memory_stream import MemoryStream


def test_an_unknown_instance_is_not_found_and_the_known_ones_are_named():
    instances = Instances({"": 1, "main": 2})
    stream = MemoryStream(None, "")
    assert [instances.get(stream, name, Right.READ_CAS) for name in ("", "main")] == [1, 2]
    with pytest.raises(NotFoundError, match="name 'x'; this server has: '', 'main' .*any_instance_name"):
        instances.get(stream, "x", Right.READ_CAS)
    with pytest.raises(NotFoundError, match="this server has: none"):
        Instances({}).get(stream, "", Right.READ_CAS)
    with pytest.raises(NotFoundError, match="and 90 more"):
        Instances(dict.fromkeys(map(str, range(100)))).get(stream, "x" * 10_000, Right.READ_CAS)


def test_only_instances_that_one_has_rights_for_are_named():
    instances = Instances({"": 1, "main": 2, "pr": 3})
    stream = MemoryStream(None, "", identity=Identity("ci", [Grant(("pr*",), Right.READ_CAS)]))
    assert instances.get(stream, "pr", Right.READ_CAS) == 3
    with pytest.raises(NotFoundError, match="this server has: 'pr' "):
        instances.get(stream, "pr-1", Right.READ_CAS)


def test_a_right_for_a_made_up_name_is_none_for_the_instance_that_serves_it():
    instances = Instances({"": 1}, any_name=True)
    stream = MemoryStream(None, "", identity=Identity("pr", [Grant(("pr-*",), ALL_RIGHTS)]))
    with pytest.raises(PermissionDeniedError, match="^'pr' does not have write_ac for instance ''$"):
        instances.get(stream, "pr-1", Right.WRITE_AC)


@pytest.mark.parametrize("name", ["main", "no such instance"])
def test_without_the_right_nothing_is_said_about_what_there_is(name):
    stream = MemoryStream(None, "", identity=Identity("ci", [Grant(("pr",), ALL_RIGHTS)]))
    with pytest.raises(PermissionDeniedError, match=f"^'ci' does not have read_cas for instance '{name}'$"):
        Instances({"main": 2}).get(stream, name, Right.READ_CAS)


def test_any_other_name_means_the_nameless_instance_if_the_config_says_so_and_there_is_one():
    instances = Instances({"": 1, "main": 2}, any_name=True)
    stream = MemoryStream(None, "")
    names = ("", "main", "moon-outputs", "a/b")
    assert [instances.get(stream, name, Right.READ_CAS) for name in names] == [1, 2, 1, 1]
    assert [instances.resolve(name) for name in names] == ["", "main", "", ""]
    with pytest.raises(NotFoundError, match="unknown instance name 'x'; this server has: 'main'"):
        Instances({"main": 2}, any_name=True).get(stream, "x", Right.READ_CAS)


def test_another_name_gives_no_right_to_the_nameless_instance():
    instances = Instances({"": 1, "main": 2}, any_name=True)
    stream = MemoryStream(None, "", identity=Identity("ci", [Grant(("pr-*", "main"), ALL_RIGHTS)]))
    assert instances.get(stream, "main", Right.READ_CAS) == 2
    with pytest.raises(PermissionDeniedError, match="for instance ''"):
        instances.get(stream, "pr-1", Right.READ_CAS)


def test_no_digest_function_is_sha256():
    assert parse_function(0) is DigestFunction.SHA256
    assert parse_function(reapi.DigestFunctionValue(1)) is DigestFunction.SHA256
    assert parse_function(reapi.DigestFunctionValue(9)) is DigestFunction.BLAKE3
    with pytest.raises(InvalidRequestError, match="digest function 2 is not supported"):
        parse_function(reapi.DigestFunctionValue(2))


def test_a_digest_is_checked_and_its_field_named():
    assert parse_digest(reapi.Digest(hash="a" * 64, size_bytes=3), DigestFunction.SHA256, "f") == Digest("a" * 64, 3)
    with pytest.raises(InvalidRequestError, match="^f: the digest is not set"):
        parse_digest(None, DigestFunction.SHA256, "f")
    with pytest.raises(InvalidRequestError, match="^f: invalid digest hash"):
        parse_digest(reapi.Digest(hash="A" * 64), DigestFunction.SHA256, "f")
