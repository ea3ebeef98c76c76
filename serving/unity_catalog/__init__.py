"""Unity Catalog's API: registered models, prompts, names and grants, as Databricks' clients ask for them."""
