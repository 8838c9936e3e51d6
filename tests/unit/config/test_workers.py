"""What is said about a worker's options that cannot be meant."""

import pytest

from nl.config.workers import ClientTlsOptions, EnvironmentSource, PropertySource, WorkerApiEndpoint
from nl.errors import ConfigError


@pytest.mark.parametrize("token", ["", " \n", "nl_SECRET nl_SECRET", "nl_SECRET\x01", "nl_SECRET\nx", "nl_SECR\u00c9T"])
def test_a_token_that_is_none_is_one_line_and_not_the_end_of_the_process(token):
    with pytest.raises(ConfigError, match="has characters that no token has") as caught:
        WorkerApiEndpoint(token=token).check()
    assert "SECR" not in str(caught.value)


def test_the_end_of_the_line_that_a_secret_came_with_is_no_part_of_it():
    WorkerApiEndpoint(token="nl_x\n").check()
    with pytest.raises(ConfigError, match="has characters that no token has"):
        WorkerApiEndpoint(token="nl_x\ny").check()


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("grpc://h:1", ("h", 1, False)), ("grpcs://h:1", ("h", 1, True)), ("http://h", ("h", 80, False)),
        ("https://h/", ("h", 443, True)), ("grpc://[::1]:65535", ("::1", 65535, False)),
        ("unix:/run/nl", ("unix:/run/nl", 0, False)), ("unix:///run/nl", ("unix:/run/nl", 0, False)),
    ],
)  # fmt: skip
def test_where_a_worker_finds_its_scheduler(uri, address):
    endpoint = WorkerApiEndpoint(uri=uri)
    endpoint.check()
    assert endpoint.address == address


@pytest.mark.parametrize("uri", ["", "h:1", "grpc://h:65536", "ftp://h:1", "grpc://h:1/x", "unix:", "unix:x", "grpc://"])
def test_what_is_no_address_is_refused(uri):
    with pytest.raises(ConfigError, match="^uri: .* is not an address; expected grpc://host:port, grpcs://"):
        WorkerApiEndpoint(uri=uri).check()


def test_a_token_is_in_one_place():
    WorkerApiEndpoint(token_file="f").check()
    with pytest.raises(ConfigError, match="^token_file: says the same as token; expected only one of the two"):
        WorkerApiEndpoint(token="x", token_file="f").check()


@pytest.mark.parametrize(
    ("kind", "one", "other", "problem"),
    [
        (PropertySource, {"values": ()}, {"query_cmd": "x"}, "expected exactly one of values and query_cmd"),
        (EnvironmentSource, {"property": "p"}, {"value": ""}, "expected exactly one of property and value"),
    ],
)
def test_a_value_has_exactly_one_source(kind, one, other, problem):
    kind(**one).check()
    kind(**other).check()
    for given in ({}, {**one, **other}):
        with pytest.raises(ConfigError, match=problem):
            kind(**given).check()


def test_a_certificate_and_its_key_belong_together():
    ClientTlsOptions().check()
    ClientTlsOptions(cert_file="c", key_file="k").check()
    for given in ({"cert_file": "c"}, {"key_file": "k"}):
        with pytest.raises(ConfigError, match="cert_file and key_file belong together; expected both or neither"):
            ClientTlsOptions(**given).check()
