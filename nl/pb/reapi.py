"""The Remote Execution API: `build.bazel.remote.execution.v2`, and `SemVer` of `build.bazel.semver`."""

from nl.pb.gen.build.bazel.remote.execution.v2 import *  # noqa: F403
from nl.pb.gen.build.bazel.semver import SemVer as SemVer  # noqa: PLC0414
