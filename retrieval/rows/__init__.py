"""Indexes over rows: Direct Access and Delta Sync, in the words of Databricks Vector Search, beside the indexes over folders.

`schema` says what an index is made of, `store` keeps its rows, `write` changes them, `query` searches them with `facets` and
`rerank`; `endpoints` and `tables` are what indexes are on and from, `follow` keeps those up to date that are to be.
"""
