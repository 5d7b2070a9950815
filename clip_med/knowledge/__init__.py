"""Class names and prompts."""
