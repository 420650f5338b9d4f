"""A demo-only Django app: an event of the `agent` service that fails on purpose, and the ledger of its effects."""
