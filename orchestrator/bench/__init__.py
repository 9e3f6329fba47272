"""Benchmarks of reading, drawing, training and ingest, in one run on one machine: `make bench`."""
