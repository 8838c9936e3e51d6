"""What every service reads from a request in the same way."""

import pytest

from nl.cas.digests import parse_digest
from nl.errors import InvalidRequestError, NotFoundError
from nl.model.digest import Digest, DigestFunction
from nl.pb import reapi
from nl.services.requests import Instances, parse_function


def test_an_unknown_instance_is_not_found_and_the_known_ones_are_named():
    instances = Instances({"": 1, "main": 2})
    assert (instances.get(""), instances.get("main")) == (1, 2)
    with pytest.raises(NotFoundError, match="unknown instance name 'x'; this server has: '', 'main'$"):
        instances.get("x")
    with pytest.raises(NotFoundError, match="this server has: none"):
        Instances({}).get("")
    with pytest.raises(NotFoundError, match="and 90 more"):
        Instances(dict.fromkeys(map(str, range(100)))).get("x" * 10_000)


def test_no_digest_function_is_sha256():
    assert parse_function(0) is DigestFunction.SHA256
    assert parse_function(reapi.DigestFunctionValue(1)) is DigestFunction.SHA256
    assert parse_function(reapi.DigestFunctionValue(9)) is DigestFunction.BLAKE3
    with pytest.raises(InvalidRequestError, match="digest function 2 is not supported"):
        parse_function(reapi.DigestFunctionValue(2))


def test_a_digest_is_checked_and_its_field_named():
    assert parse_digest(reapi.Digest(hash="a" * 64, size_bytes=3), "f") == Digest("a" * 64, 3)
    with pytest.raises(InvalidRequestError, match="^f: the digest is not set"):
        parse_digest(None, "f")
    with pytest.raises(InvalidRequestError, match="^f: invalid digest hash"):
        parse_digest(reapi.Digest(hash="A" * 64), "f")
