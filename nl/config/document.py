"""The whole config as a struct: what `loader` returns and the server is built from."""

from __future__ import annotations

from typing import Annotated, Literal

from nl.config.auth import AuthOptions
from nl.config.convert import listed, mapped, store_spec
from nl.config.fields import Conversion, Entries, Ignored, Raw, Unsupported, ZeroMeansDefault, join
from nl.config.schedulers import SchedulerSpec
from nl.config.servers import ServerOptions
from nl.config.types import Count, Options, Size, StoreName, StoreSpec
from nl.config.workers import WorkerEntry
from nl.errors import ConfigError


def _name(given: dict[str, Raw], path: str) -> tuple[str, dict[str, Raw]]:
    """(name, the rest) of `{ name: "X", <kind>: {...} }`."""
    rest = dict(given)
    name = rest.pop("name", None)
    if name is None:
        raise ConfigError(join(path, "name"), "missing; expected text")
    if not isinstance(name, str) or not name:
        raise ConfigError(join(path, "name"), "not a name; expected text that is not empty")
    return name, rest


class NamedStore(Options):
    """A store that others refer to by name."""

    name: str
    """Its name."""
    spec: StoreSpec
    """What it is."""

    @classmethod
    def from_raw(cls, raw: Raw, path: str, conversion: Conversion) -> NamedStore:
        """From `{ name: "X", <kind>: {...} }`."""
        name, rest = _name(mapped(raw, path), path)
        return cls(name=name, spec=store_spec(rest, path, conversion))


class NamedScheduler(Options):
    """A scheduler that services refer to by name."""

    name: str
    """Its name."""
    spec: SchedulerSpec
    """What it is."""

    @classmethod
    def from_raw(cls, raw: Raw, path: str, conversion: Conversion) -> NamedScheduler:
        """From `{ name: "X", <kind>: {...} }`."""
        name, rest = _name(mapped(raw, path), path)
        return cls(name=name, spec=SchedulerSpec.from_raw(rest, path, conversion))


def _named(raw: Raw, path: str, conversion: Conversion) -> list[tuple[str, Raw]]:
    """`[{ name, <kind>: {...} }]`, or the older `{ "<name>": { <kind>: {...} } }`."""
    if not isinstance(raw, dict):
        return [(f"{path}[{i}]", entry) for i, entry in enumerate(listed(raw, path))]
    if raw:
        conversion.warn(path, 'is written as a map of names, an older form; better as a list: '
                              '[{ name: "X", <kind>: {...} }]')
    entries = []
    for name, inner in raw.items():
        at = join(path, name)
        if "name" in mapped(inner, at):
            raise ConfigError(join(at, "name"), "says the name twice; expected it only as the key")
        entries.append((at, {"name": name, **inner}))
    return entries


_MAP_FORM = Entries(_named, 'also the older { "<name>": { <kind>: { ... } } }')


LEAST_CODER_MEMORY = 16 * 1024 * 1024


class GlobalOptions(Options):
    """What concerns the whole process."""

    max_open_files: Annotated[Count, ZeroMeansDefault()] = 24576
    """How many files may be open at once; the process's own limit is raised to it where that is allowed."""
    max_coder_memory: Size = 1024 * 1024 * 1024
    """How much memory blobs that are compressed, unpacked or cut into chunks while they are streamed may take together.
    Beyond it they wait for each other; uploads that wait for their clients make room."""
    default_digest_hash_function: Annotated[
        Literal["sha256", "blake3"], Unsupported("requests that name no digest function mean sha256")] = "sha256"
    """The digest function of requests that name none."""
    default_digest_size_health_check: Annotated[
        Size, ZeroMeansDefault(), Ignored("health checks write no blobs")] = 1024 * 1024
    """The size of the blob with which health checks try a store."""

    def check(self) -> None:
        """Refuses memory in which hardly anything can be coded."""
        if self.max_coder_memory < LEAST_CODER_MEMORY:
            raise ConfigError("max_coder_memory", f"{self.max_coder_memory}; expected at least {LEAST_CODER_MEMORY}")


class Config(Options):
    """The whole config."""

    stores: Annotated[tuple[NamedStore, ...], _MAP_FORM] = ()
    """Stores, each with a name and exactly one kind."""
    schedulers: Annotated[tuple[NamedScheduler, ...], _MAP_FORM] = ()
    """Schedulers, each with a name and exactly one kind."""
    workers: tuple[WorkerEntry, ...] = ()
    """Workers that run in this process."""
    servers: tuple[ServerOptions, ...] = ()
    """Listeners and what is served on them."""
    global_: GlobalOptions = GlobalOptions()
    """What concerns the whole process."""
    auth: AuthOptions | None = None
    """Who may do what, on all listeners that do not say so themselves."""
    experimental_origin_events: Annotated[Options | None, Unsupported("origin events are not published")] = None
    """Publishing of what clients do."""

    def auth_of(self, index: int) -> tuple[str, AuthOptions | None]:
        """What holds on `servers[index]`, with its path in the config."""
        own = self.servers[index].auth
        return (f"servers[{index}].auth", own) if own is not None else ("auth", self.auth)

    def store(self, name: StoreName) -> StoreSpec:
        """The store of this name. The loader has checked that names exist."""
        return next(one.spec for one in self.stores if one.name == name)
