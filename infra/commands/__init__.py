"""Subcommands of rcm: one module each, and their tables. Only infra.cli starts them."""
