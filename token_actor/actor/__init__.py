"""The actor: the one reader of the log that owns the state of a partition."""
