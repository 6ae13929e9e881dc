"""What networks return, read as logits."""

from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F

from atmc.inference import are_probabilities, as_logits, main_output

LOGITS = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])


def test_the_main_output() -> None:
    named = namedtuple("named", ["aux", "logits"])(LOGITS + 1, LOGITS)
    for output in (LOGITS, named, (LOGITS, LOGITS + 1), [LOGITS], {"loss": 1, "logits": LOGITS}):
        assert main_output(output) is LOGITS
        assert as_logits(output) is LOGITS
    with pytest.raises(TypeError, match="returns a dict, not a tensor of logits"):
        as_logits({"scores": LOGITS})


@pytest.mark.parametrize("shape", [(4, 1), (4,)])
def test_one_logit_is_read_as_two(shape: tuple[int, ...]) -> None:
    z = torch.tensor([0.5, -1.0, 3.0, 0.0])
    y = torch.tensor([1, 0, 0, 1])
    logits = as_logits(z.reshape(shape))
    assert logits.shape == (4, 2)
    torch.testing.assert_close(logits.softmax(1)[:, 1], z.sigmoid())
    expected = F.binary_cross_entropy_with_logits(z, y.float())
    torch.testing.assert_close(F.cross_entropy(logits, y), expected)


def test_probabilities() -> None:
    for output in (LOGITS.softmax(1), LOGITS.softmax(1).half(), {"logits": LOGITS.softmax(1)}):
        assert are_probabilities(output)
    assert are_probabilities(torch.tensor([[0.1], [0.9]]))
    assert are_probabilities(torch.tensor([0.1, 0.9]))
    for output in (
        LOGITS,
        LOGITS.log_softmax(1),
        LOGITS.abs(),
        torch.zeros(2, 3),
        torch.ones(2, 2),
    ):
        assert not are_probabilities(output)
    for column in ([0.1, 0.2], [0.1, 1.2], [-0.1, 0.9]):
        assert not are_probabilities(torch.tensor(column))
