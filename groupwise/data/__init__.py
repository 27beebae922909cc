"""Rows in and out: files to rows, rows to token ids. Knows nothing about models or objectives."""
