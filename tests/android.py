"""What `make android` builds, for tests; and the means to run its libraries on Linux."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from android_demo.tools import apk, natives
from android_demo.tools.run import MissingPackageError, building

Built = TypeVar("Built")
# What bionic's libraries have beyond glibc's, of the names that ours may import.
SHIM = """#include <stdarg.h>
#include <stdio.h>
int __android_log_print(int priority, const char* tag, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fprintf(stderr, "%d %s: ", priority, tag);
  int written = vfprintf(stderr, format, arguments);
  va_end(arguments);
  return written;
}
"""


def built(build: Callable[[], Built]) -> Built:
    """What `build` gives, one process at a time; skips the test where a program that it needs is not installed."""
    with skipped_without_packages(), building():
        return build()


@contextlib.contextmanager
def skipped_without_packages() -> Iterator[None]:
    try:
        yield
    except MissingPackageError as error:
        pytest.skip(str(error))


def built_apk() -> Path:
    return built(apk.build)


def make_shims(folder: Path, compiler: str) -> Path:
    """A folder for LD_LIBRARY_PATH with glibc's functions under the names of Android's libraries.

    This tests our code and its calling conventions; bionic and its loader are not here.
    """
    shims = folder / "shims"
    shims.mkdir()
    (folder / "shim.c").write_text(SHIM)
    for library in natives.allowed_imports():
        sources = [folder / "shim.c"] if library == "liblog.so" else ["-x", "c", "/dev/null"]
        real = ["-Wl,--no-as-needed", "-lm", "-ldl", "-lc"]
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{library}", *sources, "-x", "none", *real]
        subprocess.run([*command, "-o", shims / library], check=True)
    return shims
