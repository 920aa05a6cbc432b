"""Worker processes that report usage through nothing but the public package."""
