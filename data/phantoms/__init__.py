"""Seeded synthetic cohorts; nothing is downloaded."""
