"""What a config may say, and what each error means. No server is needed."""

import dns.resolver
import pytest
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    ConfigurationError,
    CursorNotFound,
    DocumentTooLarge,
    NetworkTimeout,
    OperationFailure,
    ServerSelectionTimeoutError,
    WTimeoutError,
)

from nl.plugin import ActionKey, ConfigError, ExhaustedError, TooLargeError, UnavailableError, digest_of
from nl_mongo_store import MongoStoreOptions
from nl_mongo_store.connection_string import secrets_of
from nl_mongo_store.documents import NAMES_BYTES, NAMES_MOST, batches
from nl_mongo_store.errors import meaning
from nl_mongo_store.keys import Names

URL = "mongodb://user:hunter2-is-secret@localhost:27017/"


@pytest.mark.parametrize(("more", "problem"), [
    ({"enable_change_streams": True}, "enable_change_streams: true; change streams are for scheduler state"),
    ({"write_concern_j": True}, "write_concern_j: needs write_concern_w as well"),
    ({"write_concern_timeout_ms": 5}, "write_concern_timeout_ms: needs write_concern_w as well"),
    ({"write_concern_w": "0"}, 'write_concern_w: "0" acknowledges nothing'),
    ({"key_prefix": "!x"}, 'key_prefix: "!x" begins with !'),
    ({"database": "a b"}, 'database: "a b" is no name'),
    ({"cas_collection": "system.x"}, 'cas_collection: "system.x" is no name'),
    ({"chunk_size": 100}, "chunk_size: 100 is out of range; expected 4 KiB to 8 MiB"),
    ({"read_chunk_size": 16 << 20}, "read_chunk_size: 16777216 is out of range; expected 1 byte to 8 MiB"),
    ({"max_upload_memory": 5000}, "max_upload_memory: 5000 is less than one chunk"),
    ({"key_ttl_s": 60.0}, "key_ttl_s: 60 is too short; expected 600 or more, or 0"),
    ({"connection_string": "http://localhost"}, "connection_string: not a connection string of MongoDB; expected"),
    ({"connection_string": f"{URL}?w=0"}, "connection_string: has w=0"),
    ({"connection_string": f"{URL}?readPreference=secondary"}, "connection_string: has a readPreference"),
    ({"connection_string": f"{URL}?timeoutMS=3"}, "connection_string: has timeoutms, which belongs into an option"),
    ({"connection_string": f"{URL}?wtimeoutMS=3"}, "connection_string: has wtimeoutms, which belongs into an option"),
    ({"connection_string": f"{URL}?colour=red"}, "connection_string: has an option that PyMongo does not know"),
    ({"connection_string": "mongodb://u:p@ss:word@h/"}, "connection_string: "),
    ({"connection_string": "mongodb://user:hunter2-is-secret/"}, "connection_string: "),
    ({"connection_string": f"{URL}?maxPoolSize=hunter2"}, "connection_string: "),
    ({"connection_string": f"{URL}?tlsCAFile=/no/such/file"}, "connection_string: "),
])
def test_what_cannot_work_is_refused_at_its_place(more: dict[str, object], problem: str) -> None:
    options = MongoStoreOptions(**{"connection_string": URL, **more})
    with pytest.raises(ConfigError) as caught:
        options.check()
    assert str(caught.value).startswith(problem)
    assert "expected" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("url", [
    "mongodb://localhost", "mongodb://a,b:2,c/?replicaSet=x&w=majority&readConcernLevel=majority",
    "mongodb+srv://user:p%40ss@cluster.example.org/?retryWrites=true", "mongodb://%2Frun%2Fmongodb.sock/",
    f"{URL}?authSource=admin&authMechanism=SCRAM-SHA-256&readPreference=primary",
])
def test_connection_strings_of_all_forms_are_taken(url: str) -> None:
    MongoStoreOptions(connection_string=url).check()


def test_secrets_of_a_connection_string_are_known_in_both_forms() -> None:
    for scheme in ("mongodb", "mongodb+srv"):
        found = secrets_of(f"{scheme}://user:p%40ss-word@h/?tls=true")
        assert found == {"p%40ss-word", "p@ss-word", "user:p%40ss-word", "user:p@ss-word"}
    assert "pass+word" in secrets_of("mongodb://h/?tlsCertificateKeyFilePassword=pass%2Bword")
    assert "t0k" in secrets_of("mongodb://h/?authMechanism=MONGODB-AWS&authMechanismProperties=t0k")
    assert secrets_of("mongodb://h/") == frozenset()


def failure(code: int | None, text: str = "what the server says", **more: object) -> OperationFailure:
    return OperationFailure(text, code, {"errmsg": text, **more})


@pytest.mark.parametrize(("error", "code", "kind", "retryable"), [
    (AutoReconnect("connection closed"), "Unavailable", UnavailableError, True),
    (ServerSelectionTimeoutError("nobody, Timeout: 3s"), "Unavailable", UnavailableError, True),
    (NetworkTimeout("timed out"), "DeadlineExceeded", UnavailableError, True),
    (WTimeoutError("waiting for replication", 64, {}), "DeadlineExceeded", UnavailableError, True),
    (failure(10107), "Unavailable", UnavailableError, True),
    (CursorNotFound("cursor id 7 not found", 43, {}), "Unavailable", UnavailableError, True),
    (failure(91, errorLabels=["RetryableWriteError"]), "Unavailable", UnavailableError, True),
    (failure(999, errorLabels=["RetryableWriteError"]), "Unavailable", UnavailableError, True),
    (failure(11000), "Aborted", UnavailableError, True),
    (failure(112), "Aborted", UnavailableError, True),
    (failure(50), "DeadlineExceeded", UnavailableError, True),
    (failure(14031), "OutOfRange", ExhaustedError, False),
    (failure(8000, "you are over your space quota, using 513 MB of 512 MB"), "OutOfRange", ExhaustedError, False),
    (failure(10334), "OutOfRange", TooLargeError, False),
    (DocumentTooLarge("too large"), "OutOfRange", TooLargeError, False),
    (failure(18, "Authentication failed."), "PermissionDenied", UnavailableError, False),
    (failure(13, "not authorized"), "PermissionDenied", UnavailableError, False),
    (failure(59, "no such command"), "PermissionDenied", UnavailableError, False),
    (ConfigurationError("a replica set of another name"), "PermissionDenied", UnavailableError, False),
    (BulkWriteError({"writeErrors": [{"code": 14031, "errmsg": "full"}]}), "OutOfRange", ExhaustedError, False),
    (BulkWriteError({"writeConcernErrors": [{"code": 64, "errmsg": "late"}]}), "DeadlineExceeded", UnavailableError,
     True),
])  # fmt: skip
def test_each_error_of_the_driver_has_its_meaning(error, code: str, kind: type, retryable: bool) -> None:
    found = meaning(error, ())
    assert found.code == code
    translated = found.translated("S")
    assert type(translated) is kind
    assert translated.retryable is retryable
    assert translated.message.startswith("store S: ")


def test_a_name_that_dns_does_not_know_now_may_be_known_later() -> None:
    error = ConfigurationError("no such name")
    error.__cause__ = dns.resolver.NXDOMAIN()
    assert meaning(error, ()).code == "Unavailable"


def test_messages_show_neither_secrets_nor_whole_replies() -> None:
    error = failure(18, f"cannot log in with {URL}, full error: {{'x': 1}}\nand more")
    text = str(meaning(error, secrets_of(URL)))
    assert not [each for each in ("hunter2", "full error", "\n") if each in text]
    assert len(str(meaning(failure(1, "long " * 1000), ()))) == 300


def test_names_have_ranges_of_their_own() -> None:
    names = Names("cas:")
    low, high = names.values
    keys = [digest_of(b"x"), ActionKey(*digest_of(b"x")), "text", "", "~", "ü"]
    for key in keys:
        assert low <= names.of(key) < high
        assert names.key(names.of(key)) == key
    for other in (names.record("ab"), names.chunk("ab", 2**31), "cat", "cas", "cas:!"):
        assert not low <= other < high
    assert names.upload(names.record("ab")) == "ab"
    low, high = names.chunks("ab")
    assert low <= names.chunk("ab", 0) < names.chunk("ab", 9) < names.chunk("ab", 10) < high
    assert not [other for other in ("abc", "aa") if low <= names.chunk(other, 0) < high]


def test_names_are_asked_for_in_batches_that_a_request_can_have() -> None:
    few = ["n"] * (2 * NAMES_MOST + 5)
    assert [len(some) for some in batches(few)] == [NAMES_MOST, NAMES_MOST, 5]
    long = ["n" * 100_000] * 25
    found = list(batches(long))
    assert [name for some in found for name in some] == long
    assert all(sum(map(len, some)) <= NAMES_BYTES for some in found)
    assert list(batches([])) == []
    assert list(batches(["n" * 2 * NAMES_BYTES])) == [["n" * 2 * NAMES_BYTES]]
