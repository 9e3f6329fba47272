"""What runs showed: read back, chosen, grouped, compared and drawn."""
