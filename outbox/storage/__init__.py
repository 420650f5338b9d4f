"""The only SQL of outbox tables, and the only writer of their rows."""
