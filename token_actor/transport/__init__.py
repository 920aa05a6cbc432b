"""Ports to a server of streams, and the adapters that implement them."""
