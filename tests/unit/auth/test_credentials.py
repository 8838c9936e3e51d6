"""What an authorization header carries."""

import base64

import pytest

from nl.auth.credentials import secret_of
from nl.errors import UnauthenticatedError


def basic(text):
    return b"Basic " + base64.b64encode(text)


@pytest.mark.parametrize(
    ("header", "secret"),
    [
        (b"Bearer nl_x", b"nl_x"), (b"bearer nl_x", b"nl_x"), (b"BEARER   nl_x ", b"nl_x"),
        (basic(b"user:nl_x"), b"nl_x"), (basic(b":nl_x"), b"nl_x"), (basic(b"u:a:b"), b"a:b"),
        (b"basic " + base64.b64encode(b"u:nl_x").rstrip(b"="), b"nl_x"),
    ],
)  # fmt: skip
def test_a_token_comes_as_bearer_or_as_the_password_of_any_user(header, secret):
    assert secret_of(header) == secret


@pytest.mark.parametrize(
    "header",
    [b"", b"nl_SECRET", b"Token SECRET", b"Bearer", b"Bearer ", b"Basic", b"Basic !SECRET!", basic(b"SECRET"),
     basic(b"SECRET:"), b"Bearer SECRET, Bearer SECRET", b"Bearer SECRET SECRET", b"Bearer SECRET,SECRET",
     basic(b"u:SECRET") + b", Bearer x", b"Digest SECRET", b"\xff SECRET"],
)  # fmt: skip
def test_anything_else_is_refused_and_not_repeated(header):
    with pytest.raises(UnauthenticatedError) as caught:
        secret_of(header)
    assert "SECRET" not in str(caught.value)
    assert caught.value.__cause__ is None
