"""Contrastive (CLIP-style) pretraining, adaptation and evaluation for medical images and text."""

__version__ = "0.1.0"
