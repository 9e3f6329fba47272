"""From files of any kind to validated, de-identified Parquet shards, and the order in which samples are visited."""
