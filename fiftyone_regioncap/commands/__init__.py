"""Subcommands of ``regioncap`` that live in modules of their own, one a file."""
