"""Bytes in motion: readers, verification, wire codecs. Nothing here knows a store or a socket."""
