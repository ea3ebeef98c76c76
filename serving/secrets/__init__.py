"""Databricks' secrets: scopes with access lists, encrypted where they lie."""
