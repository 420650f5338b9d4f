"""Start and stop the servers that the tests and the demo need: MariaDB, PostgreSQL, Kafka.

Standard library only: it runs before any virtual environment exists. `python3 -m scripts.services help` says how.
"""
