"""The gRPC services: one module each, translating between the wire and the model. They do not import each other."""
