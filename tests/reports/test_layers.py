"""Where the bits of an artifact went, by layer."""

import numpy as np
from report_builders import artifact

from atmc import codec
from atmc.reports.layers import bits_per_layer


def test_rows_add_up_to_the_file_and_carry_the_models_names():
    data = artifact()
    rows = bits_per_layer(codec.decode(data))
    assert [row["layer"] for row in rows] == ["conv1", "conv2", "fc1", "fc2", "file header"]
    for kind in ("parts", "factors"):
        assert sum(sum(row[kind].values()) for row in rows) == 8 * len(data)
    for row in rows:
        assert sum(row["parts"].values()) == sum(row["factors"].values())
    sizes = codec.measure(codec.decode(data))
    for part, bits in sizes.parts.items():
        assert sum(row["parts"][part] for row in rows) == bits
    assert sum(sum(row["nonzeros"].values()) for row in rows) == sizes.nonzeros


def bias_entry(name):
    bias = codec.quantize_dense(np.linspace(-1, 1, 4, dtype=np.float32), 8)
    return codec.Entry(name, bias)


def test_a_model_of_ones_own():
    rows = bits_per_layer(codec.Artifact({}, (bias_entry("a.fc.bias"), bias_entry("scale"))))
    assert [row["layer"] for row in rows] == ["a.fc", "scale", "file header"]
    assert rows[0]["factors"]["dense"] == rows[0]["parts"]["dense"] > 0


def test_a_file_that_claims_another_model():
    for meta in ({"model": "digits-cnn"}, {"model": "unheard-of"}, {"model": [1]}):
        rows = bits_per_layer(codec.Artifact(meta, (bias_entry(None),)))
        assert [row["layer"] for row in rows] == ["tensor 0", "file header"]
