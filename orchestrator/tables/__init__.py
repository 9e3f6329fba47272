"""Tables: rows of trials side by side, on real shards or on a cohort of phantoms."""
