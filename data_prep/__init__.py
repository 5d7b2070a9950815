"""From images, tables and drawings to clean WebDataset shards."""
