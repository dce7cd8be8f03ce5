"""Placeholder."""

SIGNED = {}


def samples(*_):
    return []
