"""The console: what an owner sees at a glance, and changes in place. A page a file; grants decide who sees what."""
