"""nl: a remote cache and remote execution server for builds (Remote Execution API v2) on trio."""

__version__ = "0.1.0"
