"""This installation: what it has and what it offers."""
