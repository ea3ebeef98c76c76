"""Tools for models that call tools, one family a module."""
