"""A local language model in a process of its own: prompts, batches with a key/value cache, sampling, grammars, text.

Only `worker` imports torch and transformers, and only `python -m serving.engines.llm.worker` imports `worker`.
"""
