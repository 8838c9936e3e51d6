from nl.scheduler.history import MAX_MNEMONICS, History
from tests.unit.scheduler.support import request


def test_nothing_is_expected_before_something_has_run():
    assert History().expected_s(request(1, mnemonic="Cpp")) is None


def test_actions_are_expected_to_take_what_their_like_have_taken():
    it = History()
    for _ in range(100):
        it.ran(request(1, mnemonic="Cpp"), 2.0)
        it.ran(request(2, mnemonic="Test"), 60.0)
    assert it.expected_s(request(3, mnemonic="Cpp")) == 2.0
    assert it.expected_s(request(3, mnemonic="Test")) == 60.0
    assert 2 < it.expected_s(request(3, mnemonic="Java")) < 60
    for _ in range(50):
        it.ran(request(1, mnemonic="Cpp"), 4.0)
    assert 3.9 < it.expected_s(request(3, mnemonic="Cpp")) <= 4.0


def test_what_is_remembered_is_bounded():
    it = History()
    for number in range(2 * MAX_MNEMONICS):
        it.ran(request(1, mnemonic=f"m{number}"), 1.0)
    assert len(it._by_mnemonic) == MAX_MNEMONICS
