import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from atmc.errors import WeightsError
from atmc.models.weights import digest, load_weights, read_state


def net(width=3):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 2, 1))


@pytest.fixture
def source():
    torch.manual_seed(0)
    model = net()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return model


def same(model, source):
    expected = source.state_dict()
    return all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


class Wrapped(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


WRITTEN = {
    "safetensors": lambda m, p: save_file(m.state_dict(), p),
    "torch": lambda m, p: torch.save(m.state_dict(), p),
    "before torch 1.6": lambda m, p: torch.save(
        m.state_dict(), p, _use_new_zipfile_serialization=False
    ),
    "checkpoint": lambda m, p: torch.save({"epoch": 3, "state_dict": m.state_dict()}, p),
    "model in a checkpoint": lambda m, p: torch.save({"model": m.state_dict(), "lr": 0.1}, p),
    "data parallel": lambda m, p: torch.save(Wrapped(m).state_dict(), p),
    "twice wrapped": lambda m, p: save_file(Wrapped(Wrapped(m)).state_dict(), p),
}


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_come_back_whoever_wrote_them(source, tmp_path, kind, wrapped):
    WRITTEN[kind](source, tmp_path / "weights")
    model = net()
    load_weights(Wrapped(model) if wrapped else model, tmp_path / "weights")
    assert same(model, source)


def test_a_counter_of_steps_may_be_missing(source, tmp_path):
    state = {k: v for k, v in source.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pt")
    model = net()
    load_weights(model, tmp_path / "old.pt")
    assert same(model, source)


def without(source, *names):
    return {name: value for name, value in source.state_dict().items() if name not in names}


BAD = {
    "another width": (lambda s: net(4).state_dict(), "'0.weight' is (4, 1, 3, 3) there and (3,"),
    "missing": (lambda s: without(s, "2.weight"), "it lacks '2.weight'"),
    "missing many": (
        lambda s: without(s, "0.weight", "0.bias", "1.weight", "2.weight"),
        "it lacks '0.weight', '0.bias', '1.weight' and 1 more",
    ),
    "more": (lambda s: s.state_dict() | {"3.weight": torch.zeros(1)}, "holds '3.weight' besides"),
    "other names": (
        lambda s: {"a.b": torch.zeros(1)},
        "it lacks '0.weight', '0.bias', '1.weight' and 5 more and holds 'a.b' besides",
    ),
    "no tensors": (lambda s: {"lr": 0.1}, "'lr' is no tensor"),
    "nothing": (lambda s: {}, "holds no state dict"),
    "a number": (lambda s: 3, "holds no state dict"),
    "a whole model": (lambda s: s, "holds more than tensors"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_said_in_a_line_and_changes_nothing(source, tmp_path, case):
    make, said = BAD[case]
    path = tmp_path / "bad.pt"
    torch.save(make(source), path)
    before = {name: value.clone() for name, value in source.state_dict().items()}
    with pytest.raises(WeightsError) as raised:
        load_weights(source, path)
    message = str(raised.value)
    assert str(path) in message and said in message and "\n" not in message
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())


@pytest.mark.parametrize("junk", [b"", b"junk", b"\x80\x02junk", b"PK\x03\x04junk", b"\x80"])
def test_junk_is_refused(tmp_path, junk):
    path = tmp_path / "junk"
    path.write_bytes(junk)
    with pytest.raises(WeightsError, match="junk"):
        read_state(path)


def test_code_in_a_file_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(WeightsError):
        read_state(tmp_path / "evil.pt")
    assert not (tmp_path / "made").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"void\.pt: No such file"):
        read_state(tmp_path / "void.pt")


def test_state_that_is_no_tensor_stays(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"calls": 3}

        def set_extra_state(self, state):
            assert state == {"calls": 3}

    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "plain.pt")
    model = Extra(2, 3)
    load_weights(model, tmp_path / "plain.pt")
    expected = torch.load(tmp_path / "plain.pt", weights_only=True)
    assert torch.equal(model.weight, expected["weight"])


def test_lazy_layers_take_the_shapes_of_the_file(source, tmp_path):
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    model = nn.Sequential(nn.LazyConv2d(3, 3), nn.LazyBatchNorm2d(), nn.LazyConv2d(2, 1))
    load_weights(model, tmp_path / "weights.safetensors")
    assert same(model, source)


def test_any_other_value_is_another_digest():
    def norms():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))

    known = digest(norms())
    assert known == digest(norms().eval())
    assert known == digest(norms().to(memory_format=torch.channels_last))
    for name, value in norms().state_dict().items():
        other = norms()
        other.state_dict()[name].view(-1)[-1] += 1
        assert digest(other) != known, name
        assert value.numel() > 0
    assert digest(norms().double()) != known
    assert digest(nn.Sequential(*norms(), nn.Linear(2, 2, bias=False))) != known
