"""Live experiments on endpoints."""
