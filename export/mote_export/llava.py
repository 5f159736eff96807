"""What training and evaluation both know of LLaVA's conversations; no torch. What is in a file is hostile until checked."""

from pathlib import PurePosixPath

MARKER = "<image>"  # where the picture stands in the text of a turn
ASKING, ANSWERING = ("human", "user"), ("gpt", "assistant")  # what "from" may be


def is_picture_path(name: str) -> bool:
    """Whether it is below the image folder: a file from elsewhere has no business to name another one."""
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and not {"\0", "\\"} & set(name)


def is_unicode(text: str) -> bool:
    """False for half of a character, which JSON can spell (\\ud83d): no tokenizer takes it, and no file can hold it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
