"""LangGraph's server API, as `langgraph-sdk` and its clients speak it."""
