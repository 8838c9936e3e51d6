"""What workers and schedulers say to each other."""

from nl.pb.gen.com.github.trace_machina.nativelink.remote_execution import *  # noqa: F403
