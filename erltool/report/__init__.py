"""Runs shown on a page of their own, without a kernel and without the network."""
