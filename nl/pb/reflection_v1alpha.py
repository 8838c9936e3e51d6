"""`grpc.reflection.v1alpha`: server reflection, as older tools ask for it."""

from nl.pb.gen.grpc.reflection.v1alpha import *  # noqa: F403
