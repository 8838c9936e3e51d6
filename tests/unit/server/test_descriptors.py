"""How many connections, Reads and uploads the limit of open files leaves room for."""

import resource

import pytest

from nl.server.descriptors import (
    FEW_FILES,
    OWN_FILES,
    allow_open_files,
    connection_slots,
    connections_within,
    transfers_within,
)


@pytest.mark.parametrize(("limit", "connections"), [
    (2, 1), (64, 16), (512, 236), (1024, 492), (4096, 3032), (24_576, 18_402), (1 << 20, 786_402),
])
def test_files_keep_a_quarter_and_a_thousand_but_never_more_than_half(limit, connections):
    assert connections_within(limit) == connections


@pytest.mark.parametrize("limit", [64, 100, 256, 1024, 2048, 4096, 24_576, 1 << 20])
def test_all_connections_reads_and_uploads_together_leave_some_for_the_stores(limit):
    transfers = transfers_within(limit)
    assert transfers >= 5
    left = limit - connections_within(limit) - 2 * transfers
    assert left >= min(limit // 2, OWN_FILES) + transfers


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "found"),
    [
        (100, 1000, 500, 500), (100, 1000, 5000, 1000), (100, resource.RLIM_INFINITY, 5000, 5000),
        (1000, 1000, 500, 1000), (500, 1000, 500, 500),
    ],
)  # fmt: skip
def test_the_limit_is_raised_as_far_as_is_wanted_and_allowed_and_never_lowered(monkeypatch, soft, hard, wanted, found):
    limits = [soft, hard]

    def set_limit(which, pair):
        assert which == resource.RLIMIT_NOFILE
        limits[:] = pair

    monkeypatch.setattr("nl.server.descriptors.resource.getrlimit", lambda which: tuple(limits))
    monkeypatch.setattr("nl.server.descriptors.resource.setrlimit", set_limit)
    assert allow_open_files(wanted) == found
    assert limits == [found, hard]


def test_who_finds_all_connections_taken_is_told_what_to_raise():
    slots = connection_slots(4096)
    assert slots.limit == connections_within(4096)
    assert slots._remedy.startswith("of 4096 open files the others are kept for stores; raise global.max_open_files")


def test_what_a_server_holds_before_it_has_a_client():
    assert (OWN_FILES, FEW_FILES) == (40, 1024)
