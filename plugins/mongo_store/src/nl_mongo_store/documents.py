"""The requests, blocking, for threads. Each may be made again where it is not known whether it was carried out.

A small value is one document: `{_id, size, data, used}`; NativeLink's, `{_id, data, size, version}`, are read as well.
A large one is `{_id, size, upload, chunk, used}`, and its bytes are `{_id, data}` under the names of its upload's
chunks, `chunk` bytes each. That document comes last and in one piece, so nobody sees a part of a value. It is replaced
and deleted only as the one that was looked at (`upload` is in the condition): whoever takes one away is who has made a
record of its chunks before. Chunks never change, so a value that is being read is not disturbed by what becomes of it
until its chunks are tidied up, an hour later (`sweep`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeAlias

from pymongo import DeleteOne, ReplaceOne
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError, DuplicateKeyError

from nl.plugin import Buffer, TransientError
from nl_mongo_store.errors import LostError
from nl_mongo_store.keys import Names

Document: TypeAlias = dict[str, Any]
NAMES_MOST = 10_000
NAMES_BYTES = 4 * 1024 * 1024
"""How many names are asked for at once, and their bytes: a request has 16 MiB at most."""
EXPIRING_S = 60
"""A value counts as missing so long before it expires: it may be deleted in the moment in which it is found."""
TRIES = 16
"""How often a value is looked at again that others replace all the time."""
_HEAD = {"size": 1, "upload": 1, "used": 1}


class Value(NamedTuple):
    """What is under a name."""

    size: int
    data: bytes | None
    """None if it is in chunks."""
    upload: str = ""
    chunk: int = 0
    """Bytes of each chunk but the last."""


class Documents:
    """Those of one store. All methods raise PyMongoError, or BackendError."""

    def __init__(self, collection: Collection[Document], names: Names, *, ttl_s: float) -> None:
        """`ttl_s` 0: values live for ever."""
        self.collection = collection
        self.names = names
        self.ttl = timedelta(seconds=ttl_s)
        self.offset = timedelta()
        """What the server's clock is ahead of ours."""

    def now(self) -> datetime:
        """By the server's clock, as all servers of a store count."""
        return datetime.now(UTC) + self.offset

    def ping(self) -> None:
        """Asks for a sign of life and for the time, and whether we may read."""
        began = datetime.now(UTC)
        told = self.collection.database.command("hello").get("localTime")
        ended = datetime.now(UTC)
        if isinstance(told, datetime):
            self.offset = told.replace(tzinfo=UTC) - (began + (ended - began) / 2)
        self.collection.find_one({"_id": self.names.record("none")}, {"_id": 1})

    # ------------------------------------------------------------------------------------------------------- looking

    def sizes(self, names: Sequence[str]) -> dict[str, int]:
        """Of those that are there. A use of each."""
        found: dict[str, int] = {}
        for some in batches(names):
            documents = self._find(some, _HEAD)
            found.update((each["_id"], each["size"]) for each in documents if isinstance(each.get("size"), int))
        return found

    def values(self, names: Sequence[str]) -> dict[str, Value]:
        """Those that are there. A use of each."""
        documents = self._find(names, None)
        return {each["_id"]: value for each in documents if (value := value_of(each)) is not None}

    def _find(self, names: Sequence[str], fields: Mapping[str, int] | None) -> list[Document]:
        wanted = names[0] if len(names) == 1 else {"$in": list(names)}
        found = list(self.collection.find({"_id": wanted}, fields, batch_size=max(2, len(names))))
        if not self.ttl:
            return found
        now = self.now()
        expired, stale = now - self.ttl + timedelta(seconds=EXPIRING_S), now - self.ttl / 8
        found = [each for each in found if _used(each) is None or _used(each) > expired]
        if old := [each["_id"] for each in found if _used(each) is None or _used(each) < stale]:
            self.collection.update_many({"_id": {"$in": old}}, {"$set": {"used": now}})
        return found

    def chunks(self, upload: str, first: int, count: int) -> list[bytes | None]:
        """`count` chunks from number `first` on; None for those that are not there."""
        names = [self.names.chunk(upload, number) for number in range(first, first + count)]
        wanted = names[0] if count == 1 else {"$in": names}
        found = {each["_id"]: each.get("data") for each in self.collection.find({"_id": wanted})}
        return [data if isinstance(data := found.get(name), bytes) else None for name in names]

    def page(self, after: str, limit: int) -> list[tuple[str, int]]:
        """Names of values and their sizes, in order, from behind `after`."""
        low, high = self.names.values
        ids = {"$gt": after, "$lt": high} if after else {"$gte": low, "$lt": high}
        found = self.collection.find({"_id": ids}, {"size": 1}, batch_size=max(2, limit)).sort("_id", 1).limit(limit)
        return [(each["_id"], size if isinstance(size := each.get("size"), int) else -1) for each in found]

    # ------------------------------------------------------------------------------------------------------- writing

    def put(self, name: str, data: Buffer, *, new: bool) -> None:
        """Writes a small value. `new`: most likely there is none."""
        self._place(self._small(name, data), new=new)

    def put_many(self, values: Sequence[tuple[str, Buffer]]) -> None:
        """Writes small values."""
        documents = [self._small(name, data) for name, data in values]
        requests = [ReplaceOne({"_id": each["_id"], "upload": None}, each, upsert=True) for each in documents]
        try:
            self.collection.bulk_write(requests, ordered=False)
        except BulkWriteError as error:
            if {each.get("code") for each in error.details.get("writeErrors", ())} != {DUPLICATE}:
                raise
        except KeyError:  # FerretDB's reply about an error lacks what PyMongo counts on
            pass
        else:
            return
        for each in documents:  # some take the place of a large one, or of one that was written at the same time
            self._place(each, new=False)

    def _small(self, name: str, data: Buffer) -> Document:
        whole = data if isinstance(data, bytes) else bytes(data)
        return {"_id": name, "size": len(whole), "data": whole, "used": self.now()}

    def _place(self, document: Document, *, new: bool) -> None:
        """Writes a value's document in place of whatever is there."""
        name, upload = document["_id"], document.get("upload")
        before: str | None = None
        for at in range(TRIES):
            try:
                if new and not at:
                    self.collection.insert_one(document)
                else:
                    self.collection.replace_one({"_id": name, "upload": before}, document, upsert=True)
                return
            except DuplicateKeyError:  # there is one that the condition is not true of
                there = self.collection.find_one({"_id": name}, {"upload": 1})
            before = there.get("upload") if there else None
            if before is not None and before == upload:
                return  # an earlier attempt whose answer was lost
            if before is not None:
                self._record(before, name)
        raise TransientError("a value is replaced by others all the time", code="Aborted")

    def begin(self, upload: str, name: str) -> None:
        """Before the first chunk."""
        self._record(upload, name)

    def add(self, upload: str, number: int, data: Buffer) -> None:
        """Writes a chunk."""
        whole = data if isinstance(data, bytes) else bytes(data)
        try:
            self.collection.insert_one({"_id": self.names.chunk(upload, number), "data": whole})
        except DuplicateKeyError:
            pass  # by an attempt before this one, whose answer was lost

    def still_going_on(self, upload: str) -> None:
        """Keeps the chunks from being tidied up. Raises LostError if that has begun already."""
        record = {"_id": self.names.record(upload), "swept": None}
        if not self.collection.update_one(record, {"$set": {"at": self.now()}}).matched_count:
            raise LostError("an upload stood still for so long that its chunks were tidied up")

    def finish(self, upload: str, name: str, *, size: int, chunk: int, new: bool) -> None:
        """Makes a value of the chunks. Raises LostError unless the server has all of them: one that was killed, or lost
        an election, may have forgotten what it had acknowledged.
        """
        count = -(-size // chunk)
        low, high = self.names.chunks(upload)
        there = sum(1 for _ in self.collection.find({"_id": {"$gte": low, "$lt": high}}, {"_id": 1}))
        if there != count:
            raise LostError(f"the server has {there} of the {count} chunks of an upload")
        self.still_going_on(upload)
        self._place({"_id": name, "size": size, "upload": upload, "chunk": chunk, "used": self.now()}, new=new)

    def forget(self, upload: str) -> None:
        """Deletes the record of an upload whose value is there."""
        self.collection.delete_one({"_id": self.names.record(upload)})

    # ------------------------------------------------------------------------------------------------------- removal

    def remove(self, names: Sequence[str], *, unused_since: datetime | None = None) -> None:
        """Takes values out, or of these only what nobody has used since then."""
        unused: Document = {} if unused_since is None else {"used": {"$lt": unused_since}}
        for some in batches(names):
            among = {"_id": {"$in": some}, **unused}
            large = list(self.collection.find({**among, "upload": {"$ne": None}}, {"upload": 1}))
            for each in large:
                self._record(each["upload"], each["_id"])
            self.collection.delete_many({**among, "upload": None})
            if large:
                requests = [DeleteOne({"_id": each["_id"], "upload": each["upload"], **unused}) for each in large]
                self.collection.bulk_write(requests, ordered=False)

    def remove_broken(self, name: str, upload: str) -> None:
        """Takes out a value that has lost some of its chunks, unless it was replaced meanwhile."""
        self._record(upload, name)
        self.collection.delete_one({"_id": name, "upload": upload})

    def discard(self, upload: str, *, in_doubt: bool = False) -> None:
        """Deletes the chunks of an upload that is no value's, and its record. `in_doubt`: some request to write one may
        still be on its way, so the record stays.
        """
        low, high = self.names.chunks(upload)
        self.collection.delete_many({"_id": {"$gte": low, "$lt": high}})
        if not in_doubt:
            self.forget(upload)

    def _record(self, upload: str, name: str) -> None:
        """Notes that the chunks of an upload may not be the value's that has, or had, or will have that name."""
        record = {"_id": self.names.record(upload), "key": name, "at": self.now()}
        try:
            self.collection.insert_one(record)
        except DuplicateKeyError:
            self.collection.update_one({"_id": record["_id"]}, {"$set": {"key": name, "at": record["at"]}}, upsert=True)


DUPLICATE = 11000


def value_of(document: Document) -> Value | None:
    """What a document says; None if that is no value."""
    if isinstance(data := document.get("data"), bytes):
        return Value(len(data), data)
    size, upload, chunk = (document.get(name) for name in ("size", "upload", "chunk"))
    if isinstance(size, int) and isinstance(upload, str) and isinstance(chunk, int) and size >= 0 and chunk > 0:
        return Value(size, None, upload, chunk)
    return None


def batches(names: Iterable[str]) -> Iterator[list[str]]:
    """Names that one request may ask for."""
    some: list[str] = []
    room = NAMES_BYTES
    for name in names:
        room -= len(name) * 4 + 16
        if some and (room < 0 or len(some) == NAMES_MOST):
            yield some
            some, room = [], NAMES_BYTES - len(name) * 4 - 16
        some.append(name)
    if some:
        yield some


def _used(document: Document) -> Any:
    """When a value was last used, None if that is not known: one of NativeLink's."""
    used = document.get("used")
    return used if isinstance(used, datetime) else None
