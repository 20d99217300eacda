"""Mixup and CutMix are timm's, as a function of torch's random state, for any size of batch."""

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup
from torch import Tensor

from loralight.errors import InputError
from loralight.tasks.image_classification.mixing import Mixing

LABELS = torch.tensor([2, 0, 1, 1, 3])


def images(count: int) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def mixed(count: int, seed: int = 0, *, mixup: float = 0.5, cutmix: float = 0.0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return Mixing(mixup=mixup, cutmix=cutmix, label_smoothing=0.1, num_labels=4)(images(count), LABELS[:count])


def smoothed(count: int) -> Tensor:
    return torch.full((count, 4), 0.1 / 4).scatter_(1, LABELS[:count, None], 0.9 + 0.1 / 4)


@pytest.mark.parametrize("count", [2, 4, 5])
def test_mixup_blends_pairs_of_images_and_of_labels_by_one_share(count: int) -> None:
    found, targets = mixed(count)
    x, y, even = images(count), smoothed(count), count // 2 * 2
    other = x[:even].flip(0)
    share = ((found[0] - other[0]) / (x[0] - other[0])).median()  # as drawn from the Beta distribution
    assert 0 < share < 1
    torch.testing.assert_close(found[:even], share * x[:even] + (1 - share) * other, rtol=1e-4, atol=1e-4)
    blend = share * y[:even] + (1 - share) * y[:even].flip(0)
    torch.testing.assert_close(targets[:even], blend, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("count", [1, 5])
def test_an_image_without_a_partner_stays_as_it_is(count: int) -> None:
    found, targets = mixed(count)
    assert torch.equal(found[-1], images(count)[-1])
    torch.testing.assert_close(targets[-1], smoothed(count)[-1])


def test_cutmix_pastes_a_box_and_its_share_of_the_label() -> None:
    for seed in range(5):
        found, targets = mixed(4, seed, mixup=0.0, cutmix=1.0)
        x = images(4)
        from_other = (found == x.flip(0)).all(1) & ~(found == x).all(1)  # (batch, height, width)
        assert bool((from_other | (found == x).all(1)).all())
        share = from_other[0].float().mean()
        y = smoothed(4)
        torch.testing.assert_close(targets, (1 - share) * y + share * y.flip(0))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_batches_are_those_of_timm_from_the_same_random_numbers(mixup: float, cutmix: float) -> None:
    torch.manual_seed(5)
    np.random.seed(int(torch.randint(2**62, ())) % 2**32)
    by_timm = Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=0.1, num_classes=4)
    wanted = by_timm(images(4), LABELS[:4])
    torch.testing.assert_close(mixed(4, 5, mixup=mixup, cutmix=cutmix), wanted)


def test_torch_s_seed_decides_and_numpy_s_is_neither_read_nor_touched() -> None:
    np.random.seed(1)
    one = mixed(4, seed=2)
    after = np.random.rand()
    np.random.seed(99)
    assert all(torch.equal(a, b) for a, b in zip(one, mixed(4, seed=2), strict=True))
    np.random.seed(1)
    assert after == np.random.rand()
    assert not torch.equal(one[0], mixed(4, seed=3)[0])


def test_the_batch_itself_is_not_changed() -> None:
    batch = images(4)
    Mixing(mixup=0.0, cutmix=1.0, label_smoothing=0.0, num_labels=4)(batch, LABELS[:4])
    assert torch.equal(batch, images(4))


@pytest.mark.parametrize(("mixup", "cutmix", "name"), [(-1.0, 0.0, "mixup"), (0.2, -0.5, "cutmix")])
def test_a_negative_parameter_is_an_error(mixup: float, cutmix: float, name: str) -> None:
    with pytest.raises(InputError, match=rf"^E-AUGMENT: task\.{name}=-"):
        Mixing(mixup=mixup, cutmix=cutmix, label_smoothing=0.0, num_labels=4)
