"""Resource names: what clients send is understood, everything else is refused with the reason."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nl.errors import InvalidRequestError
from nl.model import resource
from nl.model.digest import MAX_SIZE, Digest, DigestFunction
from nl.model.resource import ReadName, WriteName, parse_read, parse_write

H = "0123456789abcdef" * 4
UUID = "6a3b1c9e-0000-4000-8000-0123456789ab"

segments = st.text(string.ascii_letters + string.digits + "-_.é +", min_size=1, max_size=12).filter(
    lambda s: s not in resource.RESERVED and s not in (".", "..")
)
instances = st.lists(segments, max_size=4).map("/".join)
functions = st.sampled_from(DigestFunction)
hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
digests = st.builds(Digest, hashes, st.integers(0, MAX_SIZE), functions)
compressors = st.sampled_from(["", *sorted(resource.COMPRESSORS)])
reads = st.builds(ReadName, instances, digests, compressors)
metadata = st.text(string.ascii_letters + "/._", max_size=10).filter(lambda s: not s.startswith("/") or len(s) > 1)
writes = st.builds(
    WriteName, instances, st.text("0123456789abcdef-", min_size=1), digests, compressors, metadata
)
noise = st.lists(
    st.one_of(
        st.sampled_from(["blobs", "uploads", "compressed-blobs", "zstd", "blake3", "sha256", "..", "", H, H.upper(),
                         "5", "-5", "05", str(MAX_SIZE + 1), "sha1", "actions", "main"]),
        st.text(max_size=6),
    ), max_size=9,
).map("/".join)


@given(reads)
def test_read_name_survives_a_round_trip(name):
    assert parse_read(str(name)) == name
    assert parse_read("/" + str(name)) == name


@given(writes)
def test_write_name_survives_a_round_trip(name):
    assert parse_write(str(name)) == name


@given(st.one_of(st.text(), noise))
def test_any_text_parses_or_is_an_invalid_request(text):
    for parse, slow in ((parse_read, resource._parse_read), (parse_write, resource._parse_write)):
        try:
            got = parse(text)
        except InvalidRequestError as exc:
            assert "resource name" in exc.message
            with pytest.raises(InvalidRequestError):
                slow(text)
        else:
            assert slow(text) == got


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"blobs/{H}/7", ReadName("", Digest(H, 7))),
        (f"/blobs/{H}/7", ReadName("", Digest(H, 7))),
        (f"a/b/c/blobs/{H}/7", ReadName("a/b/c", Digest(H, 7))),
        (f"blobs/blake3/{H}/7", ReadName("", Digest(H, 7, DigestFunction.BLAKE3))),
        (f"blobs/sha256/{H}/7", ReadName("", Digest(H, 7))),
        (f"m/compressed-blobs/zstd/{H}/7", ReadName("m", Digest(H, 7), compressor="zstd")),
        (f"compressed-blobs/zstd/blake3/{H}/0", ReadName("", Digest(H, 0, DigestFunction.BLAKE3), "zstd")),
        (f"blobs/{H}/{MAX_SIZE}", ReadName("", Digest(H, MAX_SIZE))),
    ],
)
def test_read_names_of_real_clients(text, expected):
    assert parse_read(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"uploads/{UUID}/blobs/{H}/7", WriteName("", UUID, Digest(H, 7))),
        (f"/uploads/{UUID}/blobs/{H}/7", WriteName("", UUID, Digest(H, 7))),
        (f"moon-outputs/uploads/{UUID}/blobs/{H}/7", WriteName("moon-outputs", UUID, Digest(H, 7))),
        (
            f"uploads/{UUID}/blobs/blake3/{H}/7/x/../y",
            WriteName("", UUID, Digest(H, 7, DigestFunction.BLAKE3), "", "x/../y"),
        ),
        (f"a/uploads/u/compressed-blobs/zstd/{H}/7", WriteName("a", "u", Digest(H, 7), compressor="zstd")),
    ],
)
def test_write_names_of_real_clients(text, expected):
    assert parse_write(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "segment ''"),
        ("/", "segment ''"),
        ("a/b", "none of 'blobs/'"),
        (f"../blobs/{H}/7", "segment '..'"),
        (f"a//blobs/{H}/7", "segment ''"),
        (f"actions/blobs/{H}/7", "segment 'actions'"),
        (f"blobs/{H.upper()}/7", "64 lower-case hex"),
        (f"blobs/{H[1:]}/7", "64 lower-case hex"),
        (f"blobs/{H}/-7", "invalid size '-7'"),
        (f"blobs/{H}/7x", "invalid size '7x'"),
        (f"blobs/{H}/07", "leading zeros"),
        (f"blobs/{H}/{MAX_SIZE + 1}", "invalid digest size"),
        (f"blobs/{H}/{'9' * 5000}", "invalid size"),
        (f"blobs/{H}/٣", "invalid size"),
        (f"blobs/{H}", "'{hash}/{size}' is missing"),
        ("blobs/../../etc/passwd", "64 lower-case hex|invalid size"),
        (f"blobs/{H}/7/more", "after the size"),
        (f"blobs/sha1/{H}/7", "digest function 'sha1' is not supported"),
        (f"compressed-blobs/identity/{H}/7", "unknown compressor 'identity'"),
        ("compressed-blobs", "unknown compressor ''"),
        (f"uploads/u/blobs/{H}/7", "cannot be read"),
    ],
)
def test_bad_read_names_say_what_is_wrong(text, reason):
    with pytest.raises(InvalidRequestError, match=reason):
        parse_read(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"blobs/{H}/7", "needs 'uploads"),
        ("uploads", "no uuid"),
        (f"uploads//blobs/{H}/7", "no uuid"),
        (f"uploads/u/{H}/7", "after the upload's uuid"),
        (f"uploads/{'u' * 257}/blobs/{H}/7", "longer than 256"),
        (f"../uploads/u/blobs/{H}/7", "segment '..'"),
        (f"uploads/u/blobs/{H}/-1", "invalid size"),
    ],
)
def test_bad_write_names_say_what_is_wrong(text, reason):
    with pytest.raises(InvalidRequestError, match=reason):
        parse_write(text)


@pytest.mark.parametrize("length", [199, 200, 201, 5000])
def test_an_instance_name_may_be_of_any_length_and_long_ones_are_not_remembered(length):
    instance = "x" * length
    resource._is_plain_instance.cache_clear()
    assert parse_read(f"{instance}/blobs/{H}/7") == ReadName(instance, Digest(H, 7))
    assert parse_write(f"{instance}/uploads/u/blobs/{H}/7") == WriteName(instance, "u", Digest(H, 7))
    assert resource._is_plain_instance.cache_info().currsize == (length <= 200)


def test_what_is_refused_is_shown_up_to_a_length():
    for length, shown in ((200, "x" * 200), (201, "x" * 200 + "...")):
        with pytest.raises(InvalidRequestError) as caught:
            parse_read("x" * length)
        assert caught.value.message.startswith(f"invalid resource name {shown!r}: ")
    with pytest.raises(InvalidRequestError, match=f"unexpected '{'y' * 80}' after"):
        parse_read(f"blobs/{H}/7/{'y' * 100}")
    with pytest.raises(InvalidRequestError, match=f"unknown compressor '{'y' * 80}'"):
        parse_read(f"compressed-blobs/{'y' * 100}/{H}/7")
    with pytest.raises(InvalidRequestError, match=f"invalid size '{'1' * 80}'"):
        parse_read(f"blobs/{H}/{'1' * 100}")


def test_an_upload_id_may_be_as_long_as_is_said():
    for parse in (parse_write, resource._parse_write):
        assert parse(f"uploads/{'u' * 256}/blobs/{H}/7").uuid == "u" * 256


@pytest.mark.parametrize("size", ["0", "9", "10", "1" * 18, "1" * 19, str(MAX_SIZE)])
def test_sizes_of_any_length_are_the_same_both_ways(size):
    for instance in ("", "main/"):
        name = f"{instance}blobs/{H}/{size}"
        assert parse_read(name) == resource._parse_read(name)
        assert parse_read(name).digest.size == int(size)
        upload = f"{instance}uploads/u/blobs/{H}/{size}"
        assert parse_write(upload) == resource._parse_write(upload)
