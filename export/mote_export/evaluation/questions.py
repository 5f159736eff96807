"""Reads questions from JSON or JSON lines, in the three forms of docs/evaluation.md. What is in a file is hostile until checked."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from mote_export.evaluation.results import NO_TASK, Question
from mote_export.llava import ANSWERING, ASKING, MARKER, is_picture_path, is_unicode
from mote_runtime.errors import ImageError, MoteError
from mote_runtime.preprocess import load_image
from mote_runtime.profile.strict import Fields, parse_json, read_json, shown

MAX_ENTRIES = 10_000_000
MAX_ANSWERS = 1000  # accepted for one question; VQA has 10
MAX_TEXT = 1 << 20  # characters of a question or an answer
_LINES = (".jsonl", ".ndjson")

Progress = Callable[[Iterable[Question]], Iterable[Question]]


@dataclass(frozen=True)
class QuestionSet:
    """Questions of a file whose pictures can be read.

    Attributes:
        questions: with paths of their pictures, at least one.
        skipped: questions left out, since their picture is missing or broken.
        reason: what was wrong with the first picture, one sentence; None where nothing was skipped.
    """

    questions: tuple[Question, ...]
    skipped: int = 0
    reason: str | None = None


def read_questions(
    path: str | Path,
    image_folder: str | Path | None = None,
    *,
    limit: int | None = None,
    strict: bool = False,
    progress: Progress = iter,
) -> QuestionSet:
    """The questions of a file, once every picture of theirs has been decoded.

    Args:
        path: a JSON list, or JSON lines where it ends in .jsonl or .ndjson.
        image_folder: what the paths of pictures are relative to; default: the file's own folder.
        limit: take this many from the beginning.
        strict: refuse a set with a picture that is missing or broken, instead of leaving its questions out.
        progress: goes round the questions while their pictures are checked.

    Raises:
        MoteError: a file that is none of the three forms, or no question is left; ImageError with `strict`.
    """
    path = Path(path)
    folder = path.parent if image_folder is None else Path(image_folder)
    if not folder.is_dir():
        raise MoteError(f"image folder {folder} {'is not a folder' if folder.exists() else 'does not exist'}")
    found = list(islice(_parse(path), limit))
    if not found:
        raise MoteError(f"{path} has no questions; expected at least one")
    questions: list[Question] = []
    problems: dict[str, str] = {}  # by the picture's name, which several questions share
    checked: set[str] = set()
    skipped = 0
    for question in progress(found):
        name = question.image_name
        if name is None:
            questions.append(question)
            continue
        if name not in checked:
            checked.add(name)
            if (problem := _problem(folder / name)) is not None:
                if strict:
                    raise ImageError(problem)
                problems[name] = problem
        if name in problems:
            skipped += 1
        else:
            questions.append(replace(question, image=folder / name))
    reason = next(iter(problems.values()), None)
    if not questions:
        raise MoteError(f"no question of {path} has a picture that can be read under {folder}: {reason}")
    return QuestionSet(tuple(questions), skipped, reason)


def _problem(picture: Path) -> str | None:
    try:
        load_image(picture)
    except ImageError as error:
        return str(error)
    except (OSError, ValueError) as error:  # a name that no file can have
        return f"image {shown(str(picture))} cannot be opened: {error}"
    return None


def _parse(path: Path) -> Iterator[Question]:
    entries = _lines(path) if path.suffix.lower() in _LINES else _list(path)
    for name, entry in entries:
        fields = Fields(entry, name)
        if fields.has("conversations"):
            yield from _conversation(fields)
        elif fields.has("questions"):
            yield from _picture_with_questions(fields)
        else:
            yield _question(fields, _image_name(fields))


def _list(path: Path) -> Iterator[tuple[str, Any]]:
    document = read_json(path)
    if not isinstance(document, list) or len(document) > MAX_ENTRIES:
        raise MoteError(f"{path} holds {shown(document)}; expected a list of at most {MAX_ENTRIES} questions")
    yield from ((f"{path}: entry {index}", entry) for index, entry in enumerate(document))


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, document in read_json_lines(path):
        yield f"{path}: line {number}", document


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The number of each line that is not blank, from 1, and its document. Raises MoteError."""
    if not path.is_file():
        raise MoteError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_TEXT * 4), ""), start=1):
                if number > MAX_ENTRIES:
                    raise MoteError(f"{path} has more than {MAX_ENTRIES} lines")
                if line.strip():
                    yield number, parse_json(line, f"{path}: line {number}")
    except (OSError, UnicodeError) as error:
        raise MoteError(f"{path} cannot be read: {error}") from error


def _question(fields: Fields, image_name: str | None, task: str | None = None) -> Question:
    """{"question", "answer", "task" or "kind"}; `task` is the one of what it stands in."""
    own = _task(fields, "task") or _task(fields, "kind")
    return Question(
        text=_text(fields, "question"),
        answers=_answers(fields),
        task=own or task or NO_TASK,
        image_name=image_name,
    )


def _answers(fields: Fields) -> tuple[str, ...]:
    value = fields.value("answer")
    listed = value if isinstance(value, list) else [value]
    good = 1 <= len(listed) <= MAX_ANSWERS and all(
        isinstance(each, str) and len(each) <= MAX_TEXT and is_unicode(each) for each in listed
    )
    if not good:
        raise fields.refuse("answer", f"a string or a list of 1 to {MAX_ANSWERS} strings")
    return tuple(listed)


def _text(fields: Fields, key: str) -> str:
    text = fields.text(key, MAX_TEXT)
    if not is_unicode(text):
        raise fields.refuse(key, "valid Unicode, without half of a character")
    return text


def _task(fields: Fields, key: str = "task") -> str | None:
    return _text(fields, key) if fields.optional_text(key) else None


def _picture_with_questions(fields: Fields) -> Iterator[Question]:
    """{"image", "questions": [...]}: several about one picture."""
    image_name, task = _image_name(fields), _task(fields)
    for index, entry in enumerate(fields.rows("questions", MAX_ENTRIES)):
        yield _question(Fields(entry, f"{fields.name}: question {index}"), image_name, task)


def _conversation(fields: Fields) -> Iterator[Question]:
    """LLaVA's {"image", "conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}, ...]}, each pair by itself."""
    image_name, task = _image_name(fields), _task(fields) or NO_TASK
    turns = [
        Fields(entry, f"{fields.name}: turn {index}")
        for index, entry in enumerate(fields.rows("conversations", MAX_ENTRIES))
    ]
    if len(turns) % 2:
        raise fields.refuse("conversations", "an even number of turns, of human and gpt in turns")
    for asked, replied in zip(turns[::2], turns[1::2], strict=True):
        asked.choice("from", ASKING)
        replied.choice("from", ANSWERING)
        text = _text(asked, "value").replace(MARKER, "").strip()  # pictures come before it
        yield Question(text, (_text(replied, "value"),), task, image_name=image_name)


def _image_name(fields: Fields) -> str | None:
    name = fields.optional_text("image")
    if name is not None and not is_picture_path(name):
        raise fields.refuse("image", "a path of a picture within the image folder")
    return name
