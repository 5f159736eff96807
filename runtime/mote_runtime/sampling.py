"""Chooses the next token from the logits."""

import math

import numpy as np

from mote_runtime.arrays import FloatArray
from mote_runtime.errors import BackendError, MoteError


class Sampler:
    """Greedy at temperature 0, otherwise random by the softmax of `logits / temperature` cut to its nucleus.

    Nucleus (top-p) sampling: Holtzman et al., "The Curious Case of Neural Text Degeneration", section 3.1. The same
    seed gives the same choices for the same logits.
    """

    def __init__(self, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0) -> None:
        """Raises MoteError where a setting is out of range or would have no effect."""
        if not (math.isfinite(temperature) and temperature >= 0):
            raise MoteError(f"temperature is {temperature}; expected a finite number of at least 0")
        if not 0 < top_p <= 1:
            raise MoteError(f"top_p is {top_p}; expected a number above 0 and at most 1")
        if temperature == 0 and top_p != 1:
            raise MoteError(f"top_p {top_p} has no effect at temperature 0; set a temperature above 0 or leave it out")
        if seed < 0:
            raise MoteError(f"seed is {seed}; expected an integer of at least 0")
        self._temperature = temperature
        self._top_p = top_p
        self._random = np.random.default_rng(seed)

    def __call__(self, logits: FloatArray) -> int:
        """The id of the next token for `logits` float32 [vocab]; of equal logits greedy takes the lowest id.

        Raises BackendError where the greatest logit is not finite, as then no choice means anything.
        """
        peak = logits.max()
        if not np.isfinite(peak):
            raise BackendError(
                f"the model's greatest logit is {peak}; expected a finite number: its weights are damaged"
            )
        if self._temperature == 0:
            return int(logits.argmax())
        with np.errstate(over="ignore"):  # at a tiny temperature all but the greatest become exp(-inf) = 0
            weights = np.exp((logits.astype(np.float64) - peak) / self._temperature)
        return self._draw(weights / weights.sum())

    def _draw(self, probabilities: np.ndarray[tuple[int], np.dtype[np.float64]]) -> int:
        if self._top_p == 1:
            candidates = np.arange(probabilities.size)
        else:
            # All tokens below this bound weigh less than 1 - top_p together, so none is in the nucleus: sorting
            # the few others gives the same nucleus as sorting a vocabulary of 150,000.
            candidates = np.flatnonzero(probabilities >= (1 - self._top_p) / probabilities.size)
            candidates = candidates[np.argsort(-probabilities[candidates], kind="stable")]
            nucleus = int(np.searchsorted(probabilities[candidates].cumsum(), self._top_p)) + 1
            candidates = candidates[:nucleus]
        cumulative = probabilities[candidates].cumsum()
        drawn = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(candidates[min(int(drawn), candidates.size - 1)])
