"""Seeds made of several numbers, the same in every version of Python and on every machine."""

from numpy.random import SeedSequence

_WORD = 2**32


def seed_of(*numbers: int) -> int:
    """A seed in [0, 2**63) for these numbers in this order; other numbers, or more or fewer of them, give another seed.

    NumPy's `SeedSequence` makes the seed from the count of the numbers and the two halves of each, the lower half
    first; without the count a 0 at the end would change nothing. NumPy promises to keep its values for good (NEP 19);
    the algorithm is O'Neill's ``seed_seq_fe`` (2015,
    https://www.pcg-random.org/posts/developing-a-seed_seq-alternative.html).

    Args:
        numbers: integers, of which 64 bits count.
    """
    words = [word for number in numbers for word in (number % _WORD, number // _WORD % _WORD)]
    (state,) = SeedSequence([len(numbers), *words]).generate_state(1, "uint64").tolist()
    return int(state) % 2**63
