"""One module per command: its arguments, and the composition of the parts that it runs."""
