"""Relays and consumers built from settings, and run."""
