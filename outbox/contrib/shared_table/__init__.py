"""What is needed while one outbox table serves several services, and can be deleted after the move."""
