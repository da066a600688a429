"""What arrives: the request table, trace formats, synthetic load."""
