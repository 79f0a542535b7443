"""A plain FastAPI wrapper around the same two networks: what the service is measured against."""
