"""What an ActionResult refers to: the blobs that must be there for it to be a hit (REAPI, ActionCache).

A Tree blob is one reference and the files in it are more (A hit whose Tree's content is gone breaks a build without
the bytes). Not here: asking whether they exist; that is for whoever holds the CAS store.
"""

from __future__ import annotations

from collections.abc import Iterable

from nl.blob.reader import Buffer
from nl.cas.digests import parse_digest
from nl.errors import InvalidRequestError
from nl.model.digest import Digest, DigestFunction
from nl.pb import reapi
from nl.pb.codec import DecodeError, decode


def direct_references(result: reapi.ActionResult, function: DigestFunction) -> list[Digest]:
    """Output files, Tree blobs, root directories, stdout and stderr, each once, in the message's order.

    Raises InvalidRequestError if a digest is malformed, or absent where the message needs one.
    """
    found: dict[Digest, None] = {}
    for file in result.output_files:
        if file.digest is None and file.contents:
            continue
        found[parse_digest(file.digest, function, f"output file {file.path!r}")] = None
    for directory in result.output_directories:
        where = f"output directory {directory.path!r}"
        if directory.tree_digest is not None or directory.root_directory_digest is None:
            found[parse_digest(directory.tree_digest, function, where)] = None
        if directory.root_directory_digest is not None:
            found[parse_digest(directory.root_directory_digest, function, where)] = None
    for digest, name in ((result.stdout_digest, "stdout"), (result.stderr_digest, "stderr")):
        if digest is not None:
            found[parse_digest(digest, function, name)] = None
    return list(found)


def tree_digests(result: reapi.ActionResult, function: DigestFunction) -> list[Digest]:
    """The Tree blobs among `direct_references`, each once: their contents are references as well."""
    return list(
        dict.fromkeys(
            parse_digest(directory.tree_digest, function, f"output directory {directory.path!r}")
            for directory in result.output_directories
            if directory.tree_digest is not None
        )
    )


def tree_references(digest: Digest, encoded: Buffer) -> list[Digest]:
    """The digests of the files in an encoded Tree, each once.

    Its directories are inside of the Tree itself and need not be blobs of their own. Raises InvalidRequestError if it
    is no Tree or names a malformed digest.
    """
    try:
        tree = decode(reapi.Tree, bytes(encoded))
    except DecodeError as exc:
        raise InvalidRequestError(f"{digest} is not a Tree: {exc}") from exc
    directories: Iterable[reapi.Directory] = [tree.root, *tree.children] if tree.root is not None else tree.children
    return list(
        dict.fromkeys(
            parse_digest(file.digest, digest.function, f"tree {digest}: {file.name!r}")
            for directory in directories
            for file in directory.files
        )
    )
