"""How many connections, Reads and uploads the limit of open files leaves room for."""

import pytest

from nl.server.descriptors import OWN_FILES, connections_within, transfers_within


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
