"""`google.longrunning`: operations."""

from nl.pb.gen.google.longrunning import *  # noqa: F403
