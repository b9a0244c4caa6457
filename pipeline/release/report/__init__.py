"""The report: one page that opens without a network, and its figures, from the manifest alone."""
