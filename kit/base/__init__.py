"""The ground: files, progress, shards, shipped texts, directions, pieces of HTML; no model."""
