"""Checks of the repository: links, promised results, inputs that must be refused. Nothing imports this folder."""
