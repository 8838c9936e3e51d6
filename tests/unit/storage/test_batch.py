"""What a `put_many` comes to: which values are written, and what each blob is told."""

from nl.errors import UnavailableError, UploadMismatchError
from nl.model.digest import EMPTY_DIGESTS, ActionKey, Digest, DigestFunction
from nl.storage.batch import UploadBatch

ONE = Digest("1" * 64, 3)
ACTION = ActionKey("2" * 64, 9)


def test_of_two_values_for_one_key_the_last_is_written_and_both_are_told_of_it():
    batch = UploadBatch([(ACTION, b"older"), (ONE, b"one"), (ACTION, b"newer")])
    assert batch.values == {ACTION: b"newer", ONE: b"one"}
    assert batch.outcomes() == [None, None, None]
    failed = batch.failed[ACTION] = UnavailableError("down")
    assert batch.outcomes() == [failed, None, failed]


def test_a_blob_of_another_size_is_refused_alone_beside_a_right_one_of_its_digest():
    for blobs, wrong in (([(ONE, b"four"), (ONE, b"one")], 0), ([(ONE, b"one"), (ONE, b"four")], 1)):
        batch = UploadBatch(blobs)
        assert batch.values == {ONE: b"one"}
        assert isinstance(batch.outcomes()[wrong], UploadMismatchError)
        assert batch.outcomes()[1 - wrong] is None


def test_empty_blobs_need_no_writing_and_empty_action_results_do():
    batch = UploadBatch([*((digest, b"") for digest in EMPTY_DIGESTS), (ACTION, b"")])
    assert batch.values == {ACTION: b""}
    assert batch.outcomes() == [None] * (len(EMPTY_DIGESTS) + 1)


def test_keys_of_two_functions_are_two_values():
    twin = Digest(ONE.hash, ONE.size, DigestFunction.BLAKE3)
    assert UploadBatch([(ONE, b"one"), (twin, b"two")]).values == {ONE: b"one", twin: b"two"}
