"""What a Command means on this worker: argv, environment, and where its working directory and outputs lie. Pure.

Paths of outputs are relative to the working directory (REAPI, Command.output_paths) and may not leave the input root;
`..` is taken by its text, so `sub` + `../x` is `x`.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nl.errors import InvalidRequestError
from nl.pb import reapi

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""For actions that set none: several clients do not, and compilers need one to find their parts."""
NODE_PROPERTIES = frozenset({"mtime", "unix_mode"})
MAX_OUTPUTS = 100_000
MAX_PATH = 4096
"""As long as a path may be on Linux."""


class Output(NamedTuple):
    """One declared output."""

    declared: str
    """As the client wrote it: results carry this."""
    path: str
    """Relative to the input root, normalised; "" is the input root itself."""


class CommandPlan(NamedTuple):
    """A Command, checked."""

    argv: Sequence[str]
    env: Mapping[str, str]
    working_directory: str
    """Relative to the input root, normalised; "" is the input root."""
    outputs: Sequence[Output]
    node_properties: frozenset[str]
    trees: bool
    """Output directories as Tree blobs."""
    directories: bool
    """Output directories as Directory blobs."""


def inside(base: str, path: str, what: str) -> str:
    """`path` below `base`, normalised, relative to the input root. InvalidRequestError if it is outside."""
    if path.startswith("/"):
        raise InvalidRequestError(f"{what} {path[:200]!r} is absolute; expected a path inside of the input root")
    if len(path) >= MAX_PATH:
        raise InvalidRequestError(f"{what} {path[:200]!r}... is longer than a path may be")
    if "\0" in path:
        raise InvalidRequestError(f"{what} {path[:200]!r} has a NUL in it")
    joined = posixpath.normpath(posixpath.join(base, path)) if base or path else "."
    if joined == ".":
        return ""
    if joined == ".." or joined.startswith("../"):
        raise InvalidRequestError(f"{what} {path[:200]!r} leads outside of the input root")
    return joined


def plan_command(command: reapi.Command, *, entrypoint: str = "", extra_env: Mapping[str, str]) -> CommandPlan:
    """Checks a Command. The action's own variables win over `extra_env`; PATH gets a default if neither has one.

    Raises InvalidRequestError naming what is wrong.
    """
    if not command.arguments:
        raise InvalidRequestError("No arguments provided in Command proto")
    argv = [entrypoint, *command.arguments] if entrypoint else list(command.arguments)
    if any("\0" in argument for argument in argv):
        raise InvalidRequestError("an argument of the command has a NUL in it")
    env = {"PATH": DEFAULT_PATH, **extra_env}
    for variable in command.environment_variables:
        if not variable.name or "=" in variable.name or "\0" in variable.name or "\0" in variable.value:
            raise InvalidRequestError(f"invalid environment variable {variable.name[:200]!r}")
        env[variable.name] = variable.value
    working_directory = inside("", command.working_directory, "working_directory")
    declared = command.output_paths or [*command.output_files, *command.output_directories]
    if len(declared) > MAX_OUTPUTS:
        raise InvalidRequestError(f"the command declares {len(declared)} outputs; expected at most {MAX_OUTPUTS}")
    outputs = [Output(path, inside(working_directory, path, "output path")) for path in dict.fromkeys(declared)]
    properties = frozenset(command.output_node_properties)
    if unknown := sorted(properties - NODE_PROPERTIES):
        raise InvalidRequestError(f"unknown output_node_properties {unknown}; expected {sorted(NODE_PROPERTIES)}")
    form = int(command.output_directory_format)
    if form not in (0, 1, 2):
        raise InvalidRequestError(f"unknown output_directory_format {form}")
    return CommandPlan(argv, env, working_directory, outputs, properties, trees=form != 1, directories=form != 0)
