"""Everything goes wrong at once for minutes, then every row is held against the promises: ``python -m tests.chaos``."""
