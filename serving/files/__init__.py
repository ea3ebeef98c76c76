"""Files over HTTP: artifacts, volumes and DBFS."""
