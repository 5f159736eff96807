"""A pass replaces every module that it matches, or says in one sentence why it refuses."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from mote_export.scratch import Scratch
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


def apply_passes(
    model: nn.Module,
    passes: Sequence[ModulePass],
    scratch: Scratch | None = None,
    done: Callable[[nn.Module], object] = lambda module: None,
) -> dict[str, int]:
    """Applies each pass to all modules of `model`, in place.

    Args:
        scratch: where the tensors of replacements are kept, one module at a time; in memory without it.
        done: called with each module that was replaced.

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
            replacement = module_pass.rewrite(module)
            if scratch is not None:
                scratch.keep_module(replacement)
            model.set_submodule(name, replacement)
            done(module)
        counts[module_pass.name] = len(matched)
        logger.info("%s: rewrote %d modules", module_pass.name, len(matched))
    return counts
