"""The public test kit: what a store author needs to show that a store keeps the contract.

A complete test file of a third-party store::

    from nl.testing import StoreConformance
    from my_package import MyOptions, MyStore


    class TestMyStore(StoreConformance):
        def make_store(self, context, folder):
            return MyStore(MyOptions(path=str(folder)), context)

A kind that keeps blobs over a restart derives from DurableStoreConformance as well, one that honours an EvictionPolicy
from EvictingStoreConformance, one that hands out files from LocalFilesConformance.

Needs pytest, pytest-trio and hypothesis (`pip install nl[test]`).
"""

import pytest

# Before the suite is imported: an editable install does not list its files, so pytest would not find them to rewrite,
# and a failure would read just "AssertionError".
for _module in (
    "capabilities", "concurrency", "conformance", "durable", "evicting", "forgetful", "histories", "local_files",
    "observing", "readers",
):  # fmt: skip
    pytest.register_assert_rewrite(f"nl.testing.{_module}")

from nl.testing.conformance import StoreConformance  # noqa: E402
from nl.testing.context import BareContext, started  # noqa: E402
from nl.testing.durable import DurableStoreConformance  # noqa: E402
from nl.testing.evicting import EvictingStoreConformance  # noqa: E402
from nl.testing.faults import Fault, FaultyStore, away  # noqa: E402
from nl.testing.forgetful import ForgetfulStoreConformance  # noqa: E402
from nl.testing.histories import histories  # noqa: E402
from nl.testing.local_files import LocalFilesConformance  # noqa: E402
from nl.testing.observing import find, make_blob, read, same  # noqa: E402
from nl.testing.readers import (  # noqa: E402
    BlockingReader,
    CancellingReader,
    FailingReader,
    HalfwayReader,
    PartsReader,
    drain,
    split,
)

__all__ = [
    "BareContext", "BlockingReader", "CancellingReader", "DurableStoreConformance", "EvictingStoreConformance",
    "FailingReader", "Fault", "FaultyStore", "ForgetfulStoreConformance", "HalfwayReader", "LocalFilesConformance",
    "PartsReader",
    "StoreConformance", "away", "drain", "find", "histories", "make_blob", "read", "same", "split", "started",
]
