"""How many connections the limit of open files leaves room for."""

import pytest

from nl.server.descriptors import connections_within


@pytest.mark.parametrize(("limit", "connections"), [
    (2, 1), (64, 32), (512, 256), (1024, 512), (4096, 3072), (24_576, 18_432), (1 << 20, 786_432),
])
def test_files_keep_a_quarter_and_a_thousand_but_never_more_than_half(limit, connections):
    assert connections_within(limit) == connections
