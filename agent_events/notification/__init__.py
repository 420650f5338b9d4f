"""The `notification` service: its outbox table, its events, its handlers and its records."""
