"""Indexes over HTTP, in the words of Databricks Vector Search ("AI Search"), as all of its clients speak them.

`endpoints`, `indexes` and `queries` are the paths of `/api/2.0/vector-search`, `resources` those of `/api/2.0/ai-search`;
`access` is who may do what and how bodies are read, `shapes` how things are shown.
"""
