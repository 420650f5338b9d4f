"""A model of the protocol of leases and order, searched exhaustively for small cases."""
