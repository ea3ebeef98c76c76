"""Graph builders, one a module. Each is pure: it is handed its model, retriever, tools and checkpointer."""
