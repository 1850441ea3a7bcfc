"""A soak test: a site under all faults at once for a given time, then an audit of the result."""
