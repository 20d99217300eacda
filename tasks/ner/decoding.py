"""The best valid tags of each sentence: exact, for all sentences of a batch at once.

Viterbi, 1967, https://doi.org/10.1109/TIT.1967.1054010, with transitions that are either allowed or not.
"""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

PADDING = -1


def by_sentence(values: Tensor, lengths: Tensor, padding: float = PADDING) -> Tensor:
    """Values of words (words, ...) as padded rows of sentences (sentences, longest, ...)."""
    return pad_sequence(list(torch.split(values, lengths.tolist())), batch_first=True, padding_value=padding)


def decode(log_probabilities: Tensor, lengths: Tensor) -> Tensor:
    """The most likely tags of each sentence in which an I-x only follows a B-x or another I-x.

    Args:
        log_probabilities: (words, tags), in the order of `tags.tag_names`.
        lengths: words of each sentence, (sentences,).

    Returns:
        (sentences, longest), with -1 beyond a sentence's end.
    """
    scores = by_sentence(log_probabilities, lengths, 0.0)  # (sentences, longest, tags)
    num_sentences, longest, num_tags = scores.shape
    if not longest:
        return scores.new_empty((num_sentences, 0), dtype=torch.long)
    inside = torch.arange(longest, device=scores.device) < lengths[:, None]
    scores = scores.masked_fill(~inside[..., None], -torch.inf)
    scores[..., 0].masked_fill_(~inside, 0.0)  # beyond the end all tags are O, at no cost
    barred = _barred(num_tags, scores.device)
    best = scores[:, 0].masked_fill(barred[0], -torch.inf)  # a sentence begins as if after an O
    came_from = []
    for scores_here in scores.unbind(1)[1:]:
        before, choice = torch.where(barred, -torch.inf, best[:, :, None]).max(1)  # (sentences, tags)
        best = before + scores_here
        best = best - best.amax(-1, keepdim=True)  # else a long sentence exceeds float32's precision
        came_from.append(choice)
    tags = [best.argmax(-1)]
    for choice in reversed(came_from):
        tags.append(choice.gather(1, tags[-1][:, None])[:, 0])
    return torch.stack(tags[::-1], 1).masked_fill(~inside, PADDING)


def _barred(num_tags: int, device: torch.device) -> Tensor:
    """Forbidden pairs of neighbouring tags: (tag, next tag)."""
    number = torch.arange(num_tags, device=device)
    is_inner = (number > 0) & (number % 2 == 0)
    same_type = (number[:, None] + 1) // 2 == (number + 1) // 2
    return is_inner & ~same_type
