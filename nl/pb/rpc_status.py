"""`google.rpc`: Status and the standard error details."""

from nl.pb.gen.google.rpc import *  # noqa: F403
