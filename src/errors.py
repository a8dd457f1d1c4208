"""The errors that users see: each is one sentence that names the value, what is allowed and how to fix it."""


class ConfigError(ValueError):
    """A wrong input."""


class LogError(Exception):
    """A run log or a table of runs cannot be read, written, or used for what is asked."""

    def _render_traceback_(self) -> list[str]:
        """What notebooks show of it: the sentence."""
        return [f"error: {self}"]


def require(condition: bool, sentence: str) -> None:
    """ConfigError with this sentence, unless the condition holds."""
    if not condition:
        raise ConfigError(sentence)
