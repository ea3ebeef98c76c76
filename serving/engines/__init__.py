"""Engines: what runs one served entity. Each is an async generator function from a `Call` to its `Event`s."""
