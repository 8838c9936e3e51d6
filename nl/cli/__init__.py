"""The commands `nl` and `nativelink`: argument parsing and exit codes, nothing of the server itself."""
