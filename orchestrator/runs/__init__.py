"""Runs with a key and a folder: pretraining, fine-tuning, probe, export; several at once."""
