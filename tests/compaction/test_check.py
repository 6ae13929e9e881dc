"""What counts as saying the same."""

from __future__ import annotations

import logging
import sys
import warnings

import pytest
import torch
from torch import Tensor, nn

from atmc.compaction.check import allowed, first_line, largest_difference, outputs, quiet
from atmc.errors import ExportError


def test_the_tolerance() -> None:
    for largest, limit in ((1, 1e-4), (30, 1e-4), (0.01, 1e-6), (1000, 1e-3), (0, 0)):
        assert allowed(largest) == pytest.approx(limit, abs=1e-11)


def test_the_largest_difference_of_all_batches() -> None:
    model, seen = nn.Linear(3, 2), []

    def run(x: Tensor) -> Tensor:
        seen.append(len(x))
        assert x.shape[1:] == (3,) and float(x.min()) >= 0 and float(x.max()) <= 1
        return model(x) + (5e-6 if len(x) == 3 else 1e-6)

    difference = largest_difference(run, model, (3,), "thing", "do this")
    assert difference == pytest.approx(5e-6, rel=0.1)
    assert {1, 3} <= set(seen)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda y: y + 3e-4, "the thing differs from the model by 0.0003, .* is allowed"),
        (lambda y: y * float("nan"), "the thing differs from the model by nan"),
        (lambda y: y[:, :1], r"the thing gives outputs of shape \(1, 1\), the model \(1, 2\)"),
        (lambda y: y.unknown, "the thing does not run on a batch of 1 .*unknown"),
    ],
)
def test_what_does_not_say_the_same(run, message: str) -> None:  # type: ignore[no-untyped-def]
    model = nn.Linear(3, 2)
    with pytest.raises(ExportError, match=f"^{message}.*, so it is refused: do this$"):
        largest_difference(lambda x: run(model(x).detach()), model, (3,), "thing", "do this")


def test_models_that_give_no_logits() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(ExportError, match="gives a tuple, not one tensor of logits"):
        outputs(Pair(), torch.rand(1, 3))
    with pytest.raises(
        ExportError, match=r"takes no inputs of shape 3,4 .*give its own, input_shape=\(C, H, W\)"
    ):
        outputs(nn.Linear(3, 2), torch.rand(1, 3, 4))


def test_a_long_message_becomes_one_short_line() -> None:
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"
    assert len(first_line(ValueError("x" * 1000))) == 200


def test_quiet(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(KeyError), quiet():
            warnings.warn("hm", stacklevel=1)
            logging.getLogger("torch.onnx").error("hm")
            print("hm")
            print("hm", file=sys.stderr)
            raise KeyError
        logging.getLogger("atmc.test").warning("heard")
    assert not caught and capsys.readouterr() == ("", "")
    assert [record.message for record in caplog.records] == ["heard"]
