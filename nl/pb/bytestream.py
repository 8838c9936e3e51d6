"""`google.bytestream`: reading and writing blobs as streams."""

from nl.pb.gen.google.bytestream import *  # noqa: F403
