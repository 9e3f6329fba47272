"""Sweeps: spaces of fields, their search by Optuna, and trials on Ray Tune."""
