"""What retrieval raises: one line that says what is wrong, where, and what to do."""

from __future__ import annotations


class RetrievalError(Exception):
    """A request of retrieval that cannot be met.

    Parameters
    ----------
    message: one line: what is wrong, where, what to do.
    status: HTTP status an API answers with.
    code: Databricks `error_code` (https://docs.databricks.com/api/workspace/introduction).
    """

    def __init__(self, message: str, status: int = 500, code: str = "INTERNAL_ERROR") -> None:
        super().__init__(message)
        self.message, self.status, self.code = message, status, code


class NotFound(RetrievalError):
    """An index, document or passage that does not exist."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 404, "RESOURCE_DOES_NOT_EXIST")


class AlreadyExists(RetrievalError):
    """A name that is taken."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 409, "RESOURCE_ALREADY_EXISTS")


class BadRequest(RetrievalError):
    """A name, parameter or mode that is not accepted."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 400, "INVALID_PARAMETER_VALUE")


class SourceError(RetrievalError):
    """The folder or file of an index is missing, unreadable, or holds nothing that can be indexed."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 400, "BAD_REQUEST")


class EncoderError(RetrievalError):
    """The embedding model's weights are missing or not the expected ones."""
