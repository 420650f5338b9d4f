"""Parts that a project may do without."""
