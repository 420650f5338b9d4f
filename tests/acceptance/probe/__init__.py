"""A service for tests: its handlers write down what they did, and fail, dawdle or stop where the payload says so."""
