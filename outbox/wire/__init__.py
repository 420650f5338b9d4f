"""What events look like outside of Python: bytes in, bytes out. Pure."""
