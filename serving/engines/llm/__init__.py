"""A local language model in a process of its own: prompts, batches with a key/value cache, sampling, grammars, text.

Only `worker` and what it imports need torch and transformers; the server starts it as `python -m serving.engines.llm.worker`.
"""

from pathlib import Path

PLAIN_TEMPLATE = Path(__file__).with_name("plain.jinja")
"""The chat template of models that have none of their own."""
