"""Refusals as OpenAI's clients know them: `{"error": {"message", "type", "param", "code"}}` with an HTTP status."""


class Refusal(Exception):
    """A request that is not answered, and what its client is told. param: the key of the request that is at fault.

    retry_after_s: when it is worth trying again.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400,
                 retry_after_s: int | None = None):
        super().__init__(message)
        self.message, self.param, self.code, self.status, self.retry_after_s = message, param, code, status, retry_after_s

    @property
    def kind(self) -> str:
        """OpenAI's word for the family of the status."""
        if self.status >= 500:
            return "server_error"
        return {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, "invalid_request_error")

    @property
    def body(self) -> dict:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
