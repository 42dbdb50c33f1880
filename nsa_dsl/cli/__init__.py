"""The command line, `nsa`. One file a command; each imports what it needs when it runs, so that help is quick."""

from nsa_dsl.cli.app import main

__all__ = ["main"]
