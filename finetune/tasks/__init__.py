"""One module a task: what it fits, how it is judged."""
