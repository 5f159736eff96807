"""Work that waits until somebody imports another library, so that `import mote_export` need not import it itself."""

import importlib
import logging
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

logger = logging.getLogger(__name__)


def import_after(module: str, follow_up: str) -> None:
    """Imports the module `follow_up` right after `module` has been imported by whoever wants it; at once if it was already.

    Where the follow-up cannot be imported, a warning is logged and `module` works as ever.
    """
    if module in sys.modules:
        _follow(module, follow_up)
    else:
        sys.meta_path.insert(0, _Finder(module, follow_up))


def _follow(module: str, follow_up: str) -> None:
    try:
        importlib.import_module(follow_up)
    except Exception as error:  # another version of a library may raise anything, and who imports it did not ask for us
        logger.warning("%s does not know MoTE models, as %s cannot be imported: %s", module, follow_up, error)


class _Finder(MetaPathFinder):
    """Finds one module as the other finders do, but with a loader that does more after loading."""

    def __init__(self, module: str, follow_up: str) -> None:
        self.module, self.follow_up = module, follow_up

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.module:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self)
                return spec
        return None


class _Loader(Loader):
    """The module's own loader in everything but what follows `exec_module`."""

    def __init__(self, loader: Any, finder: _Finder) -> None:
        self._loader, self._finder = loader, finder

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":  # while it is copied or unpickled, there is none yet to ask
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        # Before the module runs, so that it and others see the loader that they would see without us.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
            _follow(self._finder.module, self._finder.follow_up)
