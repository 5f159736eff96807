"""Leaves nothing on a device, however a measurement ends."""

import contextlib
import logging
from collections.abc import Iterator, Sequence

from mote_runtime.errors import MoteError
from mote_runtime.profile.devices.adb import AdbError
from mote_runtime.profile.devices.folder import Bundle, DeviceFolder
from mote_runtime.profile.signals import uninterrupted

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def cleaned_up_after_errors(folder: DeviceFolder, keep: Sequence[Bundle]) -> Iterator[None]:
    """Clean the device if the block does not end well; the error then says what could not be removed."""
    try:
        yield
    except BaseException as error:
        left = clean_up(folder, keep)
        if left and isinstance(error, MoteError):
            raise type(error)(f"{str(error).rstrip('.')}; {folder.remedy()}") from error
        if left:
            logger.error("%s", left)
        raise


def clean_up(folder: DeviceFolder, keep: Sequence[Bundle]) -> str | None:
    """Clean up; a sentence on what may be left, None where nothing is."""
    with uninterrupted():
        try:
            folder.clean(keep)
        except AdbError as error:
            return f"{str(error).rstrip('.')}; {folder.remedy()}."
    return None
