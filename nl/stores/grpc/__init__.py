"""The `grpc` kind: blobs, or action results, of another server that speaks the Remote Execution API.

Calls are retried where that is safe, many small ones travel together (`batching`), large blobs are streamed and
resumed. What each file is for stands at its top; `store` puts them together.
"""

from nl.stores.grpc.options import GrpcEndpoint, GrpcOptions, GrpcRetry, ReadBatching
from nl.stores.grpc.store import GrpcStore

__all__ = ["GrpcEndpoint", "GrpcOptions", "GrpcRetry", "GrpcStore", "ReadBatching"]
