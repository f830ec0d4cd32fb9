"""The shard format: packing, schema, manifest, writers, readers, verification."""
