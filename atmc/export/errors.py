"""What can go wrong when a model is exported."""


class ExportError(ValueError):
    """A model that cannot be exported as asked; one line that says what to do."""


def first_line(error: BaseException) -> str:
    """What an exporter says, short enough for a message."""
    said = str(error).strip().partition("\n")[0][:200]
    return said or type(error).__name__
