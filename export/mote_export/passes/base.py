"""A pass replaces every module that it matches, or says in one sentence why it refuses."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from mote_runtime.errors import MoteError

logger = logging.getLogger(__name__)


class PassError(MoteError):
    """A module matches a pass that cannot rewrite it."""


@dataclass(frozen=True)
class ModulePass:
    """One rewrite.

    Attributes:
        name: as it appears in the log and in reports.
        pattern: True for a module to be replaced.
        check: None, or the reason why this module cannot be rewritten.
        rewrite: the replacement; the old module is dropped.
    """

    name: str
    pattern: Callable[[nn.Module], bool]
    check: Callable[[nn.Module], str | None]
    rewrite: Callable[[nn.Module], nn.Module]


def apply_passes(model: nn.Module, passes: Sequence[ModulePass]) -> dict[str, int]:
    """Applies each pass to all modules of `model`, in place.

    Returns:
        How many modules each pass replaced.

    Raises:
        PassError: a pass refused; modules before that one are already rewritten, so drop the model.
    """
    counts = {}
    for module_pass in passes:
        matched = [(name, module) for name, module in model.named_modules() if name and module_pass.pattern(module)]
        for name, module in matched:
            reason = module_pass.check(module)
            if reason is not None:
                raise PassError(f"{module_pass.name} cannot rewrite {name}: {reason}.")
            model.set_submodule(name, module_pass.rewrite(module))
        counts[module_pass.name] = len(matched)
        logger.info("%s: rewrote %d modules", module_pass.name, len(matched))
    return counts
