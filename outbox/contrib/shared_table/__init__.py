"""What is needed while a table holds rows from the time when several services shared it.

Add ``outbox.contrib.shared_table`` to ``INSTALLED_APPS`` until ``manage.py rehome_outbox`` finds nothing more to move.
Then take it out, and relays and consumers no longer look for such rows.
"""
