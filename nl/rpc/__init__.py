"""gRPC on trio: an HTTP/2 connection of our own, server and client, hosting grpclib service objects."""
