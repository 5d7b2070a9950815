"""Samples, shards, order, images and the loader."""
