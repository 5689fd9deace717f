"""The ground: files, progress, shards, shipped texts, unit directions, pieces of HTML. Knows no model."""
