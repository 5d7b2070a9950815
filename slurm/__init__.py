"""Slurm job scripts."""
