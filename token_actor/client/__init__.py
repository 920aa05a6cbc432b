"""The client library: record usage, ask questions."""
