"""A grpcio server in a process of its own, to be killed: `python -m tests.wire.grpcio_server NAME PORT [HOST]`.

`/t.S/Who` answers NAME. `Slow` does so after 0.2 s. `Count` answers how many calls of it there were. Prints its port.
"""

import itertools
import sys
import time
from concurrent import futures

import grpc


def slow(name):
    time.sleep(0.2)
    return name


def build(name, *, options=(), compression=None):
    counter = itertools.count(1)
    handlers = {
        "Who": grpc.unary_unary_rpc_method_handler(lambda request, context: name),
        "Slow": grpc.unary_unary_rpc_method_handler(lambda request, context: slow(name)),
        "Count": grpc.unary_unary_rpc_method_handler(lambda request, context: b"%d" % next(counter)),
        "Echo": grpc.unary_unary_rpc_method_handler(lambda request, context: request),
    }
    pool = futures.ThreadPoolExecutor(8)
    every = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(pool, options=[*every, *options], compression=compression)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.S", handlers),))
    return server


if __name__ == "__main__":
    own = build(sys.argv[1].encode())
    host = sys.argv[3] if len(sys.argv) > 3 else "127.0.0.1"
    print(own.add_insecure_port(f"{host}:{sys.argv[2]}"), flush=True)
    own.start()
    own.wait_for_termination()
