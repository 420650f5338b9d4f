"""The consumer: records become effects, each in the transaction that marks its event."""
