"""Bytes on the wire: what the entries of every stream look like. Pure: no I/O, no clock."""
