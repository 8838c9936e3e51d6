"""Typed views over stores: action results, directories, references.

The only place below the services that knows both bytes and messages.
"""
