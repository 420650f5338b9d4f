"""The relay: rows that are due go to their service's topic."""
