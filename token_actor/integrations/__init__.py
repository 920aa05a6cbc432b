"""Leaves that bring token-actor into other programs. Each imports what it is for, and nothing else does."""
