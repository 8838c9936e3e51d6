"""Protocol buffers: the generated messages of every API spoken here, and the codec that reads and writes them.

`gen/` is written by `protos/generate.py` and never edited; the short modules beside it (`reapi`, `bytestream`, ...)
are the names to import. `codec` is the only way between messages and bytes; `hot` holds the few shapes that are worth
a codec of their own. Nothing here knows a socket, a loop or another part of the project.
"""
