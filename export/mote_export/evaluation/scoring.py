"""How an answer is scored, and how sure a mean of scores is."""

import math
from collections.abc import Callable, Mapping, Sequence

METRICS = ("exact", "contains", "vqa")
DEFAULT_METRIC = "exact"
Z_95 = 1.959964  # of the normal distribution: 95 % lie within so many standard deviations

# VQA v2 has ten answers of ten people to each question; three who agree with an answer make it right.
_VQA_AGREEING = 3


def normalise(text: str) -> str:
    """Without blanks around it and one full stop at its end, runs of blanks as one, letters of one case."""
    joined = " ".join(text.split()).casefold()
    return joined.removesuffix(".").rstrip()


def score(metric: str, answer: str, accepted: Sequence[str]) -> float:
    """The score of an answer, from 0 to 1.

    Args:
        metric: "exact": it is one of those accepted; "contains": one of them stands in it, as whole words; "vqa": the soft
            accuracy of VQA (Antol et al., 2015), min(agreeing / 3, 1) averaged over all ways to leave one of the accepted out.
            With fewer than four accepted "vqa" is "exact". All of them compare what `normalise` makes of the texts; VQA's own
            script also drops articles and punctuation and spells numbers out, which is not done.
        answer: the model's.
        accepted: at least one.
    """
    return _METRICS[metric](normalise(answer), [normalise(each) for each in accepted])


def _exact(answer: str, accepted: Sequence[str]) -> float:
    return float(answer in accepted)


def _contains(answer: str, accepted: Sequence[str]) -> float:
    words = f" {_without_marks(answer)} "

    def stands(each: str) -> bool:
        bare = _without_marks(each)
        if not bare and each:  # a sign such as "+"
            return each in answer
        return f" {bare} " in words

    return float(any(map(stands, accepted)))


def _without_marks(text: str) -> str:
    """Words only: what is no letter or digit parts them."""
    return " ".join("".join(character if character.isalnum() else " " for character in text).split())


def _vqa(answer: str, accepted: Sequence[str]) -> float:
    if len(accepted) <= _VQA_AGREEING:
        return _exact(answer, accepted)
    agreeing = sum(each == answer for each in accepted)
    # Leaving out one that agrees leaves one fewer.
    with_fewer, with_all = min((agreeing - 1) / _VQA_AGREEING, 1.0), min(agreeing / _VQA_AGREEING, 1.0)
    return (agreeing * with_fewer + (len(accepted) - agreeing) * with_all) / len(accepted)


_METRICS: Mapping[str, Callable[[str, Sequence[str]], float]] = {"exact": _exact, "contains": _contains, "vqa": _vqa}


def wilson_interval(total: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's score (E. B. Wilson, 1927), which holds for few questions and shares near 0 and 1.

    Args:
        total: the sum of scores from 0 to 1; of scores in between it makes an interval that is rather too wide.
        count: how many they are, at least 1.
    """
    share, z2 = total / count, Z_95**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z_95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def sign_test(gained: int, lost: int) -> float:
    """How probable so uneven changes are where neither side is better: two-sided, exact (McNemar's test on pairs)."""
    changed, fewer = gained + lost, min(gained, lost)
    if changed == 0:
        return 1.0
    logarithms = (
        math.lgamma(changed + 1) - math.lgamma(k + 1) - math.lgamma(changed - k + 1) - changed * math.log(2)
        for k in range(fewer + 1)
    )
    return min(1.0, 2 * math.fsum(map(math.exp, logarithms)))
