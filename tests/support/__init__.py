"""What tests share: server processes, free ports, /proc readings. Not part of the product (that is nl.testing)."""
