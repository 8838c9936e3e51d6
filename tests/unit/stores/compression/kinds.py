"""Compression stores for tests, over a backend whose objects the test can see and change."""

from nl.plugin import StoreSpec
from nl.stores.compression import CompressionOptions, CompressionStore
from nl.stores.compression.options import CompressionAlgorithm, Lz4Options, ZstdOptions
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext

ALGORITHMS = {
    "lz4": CompressionAlgorithm(lz4=Lz4Options()),
    "zstd": CompressionAlgorithm(zstd=ZstdOptions()),
}


def make_store(name, context=None, backend=None):
    context = context or BareContext()
    backend = backend or MemoryStore(MemoryOptions(), context)
    algorithm = ALGORITHMS[name] if isinstance(name, str) else name
    spec: StoreSpec = context.spec(backend)
    return CompressionStore(CompressionOptions(backend=spec, compression_algorithm=algorithm), context)
