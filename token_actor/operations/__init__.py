"""What an operator does beyond asking the actor: look at dead letters, prove the books, examine a deployment.

Nothing here prints, and nothing writes to the server but ``places.remove_namespace``, ``dead.drop_dead`` and
``retry``. It asks through a client and reads through a connection; the caller opens and closes both.
"""
