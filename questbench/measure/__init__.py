"""Timing, stopping, statistics and limits: this package knows callables and numbers, not attention."""
