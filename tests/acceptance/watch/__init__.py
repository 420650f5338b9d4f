"""A Django app that writes down which statements a process runs, and can stop a consumer before it marks its events."""
