"""What can go wrong for a user: every error here is one sentence, shown without a traceback."""


class MoteError(Exception):
    """Something the caller can mend: the message names what was found, what was expected and what to do."""

    def __init__(self, message: str) -> None:
        """The sentence gets its period here, as many end in the words of a library, which may have brought one."""
        super().__init__(message if message.endswith((".", "!", "?")) else f"{message}.")


class ExportFolderError(MoteError):
    """The exported folder is missing, damaged, changed since the export, or not one that this version reads."""


class ImageError(MoteError):
    """An image cannot be read, or the model takes none."""


class BackendError(MoteError):
    """A runtime or its plugin cannot be loaded, or it refused the model or a call."""
