"""The project's services, from its models and settings."""
