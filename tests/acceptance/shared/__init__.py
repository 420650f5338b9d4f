"""A service whose table and topic a program in Go shares (`tests/acceptance/go_peer`)."""
