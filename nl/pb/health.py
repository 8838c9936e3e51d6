"""`grpc.health.v1`: the health checking protocol of gRPC."""

from nl.pb.gen.grpc.health.v1 import *  # noqa: F403
