"""`grpc.reflection.v1`: server reflection."""

from nl.pb.gen.grpc.reflection.v1 import *  # noqa: F403
