"""Ray: joined or started, checked, and given jobs."""
