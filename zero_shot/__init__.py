"""Zero-shot classification and retrieval, metrics with intervals, and the report."""
