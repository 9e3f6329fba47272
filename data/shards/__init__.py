"""All that knows Parquet: schema, writer, index, reader, check, bundles and their manifests."""
