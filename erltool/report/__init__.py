"""Runs as one HTML page, which needs no kernel and no network."""
