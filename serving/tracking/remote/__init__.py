"""The MLflow server of `mlflow_url`: reached, asked, and read as this server's own is."""
