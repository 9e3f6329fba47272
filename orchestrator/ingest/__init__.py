"""Scans become shards: planned, read in parallel, continued and completed."""
