"""Tidying up: chunks that are no value's, and values that nobody has used for long.

Each upload has a record, made before its first chunk and deleted when its value is there; each value in chunks gets one
before it is replaced or deleted. So whatever a killed process leaves has a record, and only what has one is looked at.
A record that is an hour old is either that of a value which is there (and goes), or of chunks that are not (and go with
it: it is claimed first, after which an upload that wakes up again finds itself lost). Any number of servers may do this
at once. Blocking, for threads.
"""

from __future__ import annotations

from datetime import timedelta

from nl_mongo_store.documents import Document, Documents

AFTER_S = 3600
"""How old a record must be. So long a value that was replaced or deleted can still be read by who had begun."""
BEAT_S = 300
"""How often an upload makes its record new."""
EVERY_S = 300
"""Between two looks for what is to be tidied up."""
SOME = 500
"""How much of it one call does."""


def sweep(documents: Documents) -> bool:
    """Tidies some up. True if there may be more."""
    return bool(_sweep_records(documents)) | (_expire(documents) if documents.ttl else False)


def prepare(documents: Documents) -> None:
    """Makes the index by which expired values are found."""
    documents.collection.create_index("used")


def _sweep_records(documents: Documents) -> bool:
    low, high = documents.names.records
    old = documents.now() - timedelta(seconds=AFTER_S)
    found = list(documents.collection.find({"_id": {"$gte": low, "$lt": high}, "at": {"$lt": old}}).limit(SOME))
    for record in found:
        _settle(documents, record)
    return len(found) == SOME


def _settle(documents: Documents, record: Document) -> None:
    upload, collection = documents.names.upload(record["_id"]), documents.collection
    unchanged = {"_id": record["_id"], "at": record["at"]}
    if collection.find_one({"_id": record.get("key"), "upload": upload}, {"_id": 1}) is not None:
        collection.delete_one(unchanged)
    elif collection.update_one(unchanged, {"$set": {"swept": True}}).matched_count:
        documents.discard(upload)


def _expire(documents: Documents) -> bool:
    low, high = documents.names.values
    old = documents.now() - documents.ttl
    unused = {"used": {"$lt": old}, "_id": {"$gte": low, "$lt": high}}
    found = [each["_id"] for each in documents.collection.find(unused, {"_id": 1}).limit(SOME)]
    ours = [name for name in found if documents.names.key(name) is not None]
    if ours:
        documents.remove(ours, unused_since=old)
    return len(found) == SOME and bool(ours)
