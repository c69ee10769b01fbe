"""Subcommands of rcm: one module each, and their tables. Only infra.cli calls them."""
