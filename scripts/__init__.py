"""Commands for developing, showing and measuring the project."""
