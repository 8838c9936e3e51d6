"""What a config says of the kind: NativeLink's option names, and a few of our own."""

from __future__ import annotations

from pymongo.write_concern import WriteConcern

from nl.plugin import ConfigError, Count, Duration, Flag, Options, RetryOptions, SecretText, Size, Text
from nl_mongo_store import connection_string
from nl_mongo_store.keys import check_prefix

KIB, MIB = 1024, 1024 * 1024
THREADS, MOST_THREADS = 16, 64
LEAST_TTL_S = 600


class MongoStoreOptions(Options):
    """Blobs as documents of a MongoDB collection."""

    EXAMPLE = """{
  experimental_mongo: {
    connection_string: "mongodb://10.0.0.5,10.0.0.6,10.0.0.7/?replicaSet=rs0&tls=true",
    cas_collection: "cas",
    key_prefix: "cas/",
  },
}"""

    connection_string: SecretText
    """Where the servers are and how to log in, TLS included, as MongoDB's manual has it: `mongodb://` or
    `mongodb+srv://`. PyMongo reads it."""
    database: Text = "nativelink"
    """The database."""
    cas_collection: Text = "cas"
    """The collection with the documents."""
    scheduler_collection: Text = "scheduler"
    """Has no effect: it is for scheduler state, which is not kept here."""
    key_prefix: Text | None = None
    """What all names of documents begin with: `cas/`. Stores that share a collection need different ones."""
    read_chunk_size: Size = MIB
    """Bytes per request of a download, in whole chunks, at least one; at most 8 MiB."""
    chunk_size: Size = MIB
    """What is larger is several documents of this many bytes each; 4 KiB to 8 MiB. What is there already is read
    whatever it was written with."""
    max_concurrent_uploads: Count = 10
    """Has no effect, as with NativeLink: see `max_upload_memory`."""
    max_upload_memory: Size = 256 * MIB
    """What all uploads together may keep in memory, each `chunk_size`; more of them wait."""
    connection_timeout_ms: Count = 3000
    """For one attempt to connect, and for finding the primary; 0 means the default, here as below."""
    command_timeout_ms: Count = 10_000
    """For one request to a server."""
    enable_change_streams: Flag = False
    """Must be false: change streams are for scheduler state, which is not kept here."""
    write_concern_w: Text | None = None
    """How many servers have a write before it is acknowledged: a number from 1, `majority`, or the name of a mode. By
    default what the connection string says, else the servers' own default."""
    write_concern_j: Flag | None = None
    """Whether they have it in their journals; needs `write_concern_w`."""
    write_concern_timeout_ms: Count | None = None
    """How long that may take; needs `write_concern_w`."""
    max_requests: Count | None = None
    """Requests at the same time, each in a thread, by default 16 and at most 64 whatever it says; others wait."""
    key_ttl_s: Duration = 0
    """How long a value lives after it was last asked for, read or written; at least ten minutes. 0 means for ever."""
    retry: RetryOptions = RetryOptions(max_retries=5, delay=0.05, jitter=0.5)
    """For requests that failed. The default waits 3 seconds in all."""

    def check(self) -> None:
        """Refuses what cannot work, and what is not done here."""
        connection_string.check(self.connection_string)
        check_prefix(self.prefix)
        self._check_names()
        if self.enable_change_streams:
            problem = "true; change streams are for scheduler state, which is not kept in MongoDB; expected false"
            raise ConfigError("enable_change_streams", problem)
        self._check_write_concern()
        for name, least in (("read_chunk_size", 1), ("chunk_size", 4 * KIB)):
            if not least <= getattr(self, name) <= 8 * MIB:
                least_text = "4 KiB" if least > 1 else "1 byte"
                raise ConfigError(name, f"{getattr(self, name)} is out of range; expected {least_text} to 8 MiB")
        if self.max_upload_memory < self.chunk_size:
            problem = f"{self.max_upload_memory} is less than one chunk; expected at least {self.chunk_size}"
            raise ConfigError("max_upload_memory", problem)
        if 0 < self.key_ttl_s < LEAST_TTL_S:
            raise ConfigError("key_ttl_s", f"{self.key_ttl_s:g} is too short; expected {LEAST_TTL_S} or more, or 0")

    def _check_names(self) -> None:
        if not self.database or set(self.database) & set('/\\. "$\0'):
            raise ConfigError("database", f'"{self.database}" is no name of a database; expected "nativelink"')
        collection = self.cas_collection
        if not collection or set(collection) & set("$\0") or collection.startswith("system."):
            raise ConfigError("cas_collection", f'"{collection}" is no name of a collection; expected "cas"')

    def _check_write_concern(self) -> None:
        if self.write_concern_w is None:
            for name in ("write_concern_j", "write_concern_timeout_ms"):
                if getattr(self, name) is not None:
                    raise ConfigError(name, 'needs write_concern_w as well; expected write_concern_w: "majority"')
        elif self.write_concern_w in ("", "0"):
            problem = f'"{self.write_concern_w}" acknowledges nothing; expected a number from 1, or "majority"'
            raise ConfigError("write_concern_w", problem)

    @property
    def prefix(self) -> str:
        """`key_prefix`, or none."""
        return self.key_prefix or ""

    @property
    def threads(self) -> int:
        """How many requests run at once."""
        return min(self.max_requests or THREADS, MOST_THREADS)

    @property
    def connect_timeout_ms(self) -> int:
        return self.connection_timeout_ms or 3000

    @property
    def request_timeout_ms(self) -> int:
        return self.command_timeout_ms or 10_000

    @property
    def write_concern(self) -> WriteConcern | None:
        """What the options say of it, None if nothing."""
        if self.write_concern_w is None:
            return None
        w = int(self.write_concern_w) if self.write_concern_w.isdecimal() else self.write_concern_w
        return WriteConcern(w=w, j=self.write_concern_j, wtimeout=self.write_concern_timeout_ms or None)
