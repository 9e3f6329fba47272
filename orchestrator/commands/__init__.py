"""The commands of `raydiology`, grouped by subject; each imports its dependencies when it runs."""
