"""What an app declares: contracts, handlers, routes and the retry policy. Pure."""
