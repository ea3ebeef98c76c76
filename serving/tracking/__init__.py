"""MLflow under this host: its server as a child process, and what clients find behind their keys."""
