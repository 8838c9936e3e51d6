"""What an ActionResult refers to: the blobs that must be there for it to be a hit (REAPI, ActionCache).

A Tree blob is one reference and the files in it are more: a hit whose Tree's content is gone breaks a build without the
bytes. Those are read by `nl.cas.file_digests`; whether they exist is asked by `nl.cas.completeness`.
"""

from __future__ import annotations

from nl.cas.digests import parse_digest
from nl.model.digest import Digest, DigestFunction
from nl.pb import reapi


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


def root_digests(result: reapi.ActionResult, function: DigestFunction) -> list[Digest]:
    """The root directories of output directories that have no Tree: what is below them are references as well."""
    return list(
        dict.fromkeys(
            parse_digest(directory.root_directory_digest, function, f"output directory {directory.path!r}")
            for directory in result.output_directories
            if directory.tree_digest is None
        )
    )


def tree_digests(result: reapi.ActionResult, function: DigestFunction) -> list[Digest]:
    """The Tree blobs among `direct_references`, each once: their contents are references as well."""
    return list(
        dict.fromkeys(
            parse_digest(directory.tree_digest, function, f"output directory {directory.path!r}")
            for directory in result.output_directories
            if directory.tree_digest is not None
        )
    )
