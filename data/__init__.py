"""Files of any kind into validated, de-identified Parquet shards, and the order in which samples are visited."""
