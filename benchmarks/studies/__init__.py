"""Small versions of the papers' experiments: each module is one command that writes a figure and a table."""
