"""What every worker loop stands on: leases, heartbeats, wake-ups, classes of errors, back-off, the stop flag."""
