"""The cycle collector of a server is rare, and looks at nothing that start-up has made."""

import gc

from nl.server.collector import COLLECT_AFTER, calm_collector


def test_the_collector_is_calm():
    before = gc.get_threshold()
    try:
        calm_collector()
        assert gc.get_threshold() == (COLLECT_AFTER, 20, 50) == (100_000, 20, 50)
        assert gc.get_freeze_count() > 0
        assert gc.isenabled()
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
