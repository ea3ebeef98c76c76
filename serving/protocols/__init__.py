"""Protocols: one decode/encode pair each, and no server inside.

`decode(body)` turns a client's JSON into a `Request` whose payload is a Responses API request; an `Encoder` turns the
answer's events (or the final result) into what that client reads.
"""
