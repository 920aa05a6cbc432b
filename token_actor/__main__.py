"""``python -m token_actor``: the command line."""

from token_actor.cli.app import main

main()
