"""How an encoder or a task does: validation, health, probes and pictures."""
