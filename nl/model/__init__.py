"""Value types of the Remote Execution API that every layer shares. Pure: no I/O, no trio, no protobuf."""
