"""HTTP/2 as a state machine: what a connection may do, without sockets, tasks and time (RFC 9113)."""
