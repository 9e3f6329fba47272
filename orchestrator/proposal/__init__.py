"""A first experiment for some shards: measured, decided and written."""
