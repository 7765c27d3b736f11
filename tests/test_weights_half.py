"""Half the bytes hold the same encoder, and the weights that ship need nothing but their files."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from medsiam.encoding import weights as weights_module
from medsiam.encoding.encoder import Encoder, TwinEncoder
from medsiam.encoding.record import settings_from
from medsiam.encoding.weights import KEY, SHIPPED, load_encoder, save_encoder
from medsiam.errors import WeightsRefused
from medsiam.weightfile import read_weights, tensors_digest
from tests.phantoms import radiograph, small_head
from tests.test_encoder import SMALL, SMALL_FLAT, made


@pytest.fixture
def halved(tmp_path):
    path = tmp_path / "small.safetensors"
    save_encoder(made(), path, metadata={"name": "small"}, half=True)
    return path


def test_half_precision_keeps_the_embedding(halved):
    """Half the bytes; the cosine with the whole numbers' embedding stays within .001 of one."""
    head = small_head().volume
    whole, half = made()(head).embedding, load_encoder(halved)(head).embedding
    assert float(whole @ half) > 1.0 - 1e-3
    assert not np.array_equal(whole, half)


def test_half_precision_halves_the_file(halved, tmp_path):
    """Which is why it is there."""
    save_encoder(made(), tmp_path / "whole.safetensors", metadata={"name": "small"})
    assert halved.stat().st_size < 0.55 * (tmp_path / "whole.safetensors").stat().st_size


def test_what_is_stored_in_half_is_whole_in_memory_and_its_digest_is_of_what_is_stored(halved):
    """A network of mixed kinds fails at its first layer."""
    stored = read_weights(halved)
    assert {tensor.dtype for tensor in stored.tensors.values()} == {torch.float16}
    assert json.loads(stored.metadata[KEY])["tensors_sha256"] == tensors_digest(stored.tensors)
    network = load_encoder(halved).network
    assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32}


def test_storing_the_half_again_in_half_gives_the_same_file(halved, tmp_path):
    """Nothing is lost a second time."""
    again = tmp_path / "again.safetensors"
    save_encoder(load_encoder(halved), again, metadata={"name": "small"}, half=True)
    assert again.read_bytes() == halved.read_bytes()


@pytest.mark.parametrize(("kind", "is_read"), [(torch.float16, True), (torch.float32, True),
                                               (torch.bfloat16, False), (torch.int32, False)])  # fmt: skip
def test_each_tensor_may_be_whole_or_half_and_nothing_else(halved, kind, is_read):
    """Other kinds of numbers keep too little to be an encoder."""
    file = read_weights(halved)
    tensors = dict(file.tensors) | {"project.bias": torch.zeros(12).to(kind)}
    record = json.loads(file.metadata[KEY]) | {"tensors_sha256": tensors_digest(tensors)}
    del record["record_sha256"]
    save_file(tensors, halved, metadata={KEY: json.dumps(record)})
    if is_read:
        assert load_encoder(halved).settings == SMALL
        return
    with pytest.raises(WeightsRefused, match=f"as {kind}"):
        load_encoder(halved)


def test_a_number_beyond_half_precision_is_not_stored(tmp_path):
    """It would become infinite."""
    encoder = made()
    with torch.no_grad():
        encoder.network.project.bias.fill_(1e6)
    save_encoder(encoder, tmp_path / "whole.safetensors", metadata={})
    with pytest.raises(WeightsRefused, match="not finite"):
        save_encoder(encoder, tmp_path / "half.safetensors", metadata={}, half=True)


@pytest.mark.parametrize("field", ["embedding_size", "summary_cells", "spatial_dims"])
@pytest.mark.parametrize("wrong", ["2", 2.0, True, None])
def test_a_whole_number_in_a_record_is_a_whole_number(halved, field, wrong):
    """Text and fractions would build another network, or fail late."""
    told = json.loads(read_weights(halved).metadata[KEY])["settings"]
    assert settings_from(told) == SMALL
    with pytest.raises(TypeError):
        settings_from(told | {field: wrong})


def test_dropping_in_a_file_and_its_digest_is_all_that_shipping_takes(tmp_path, monkeypatch):
    """Each name of the table becomes loadable, alone and as what fits the scan."""
    monkeypatch.setattr(weights_module, "SHIPPED_FOLDER", tmp_path)
    for name, settings in (("mr-ct-3d", SMALL), ("radiograph-2d", SMALL_FLAT)):
        with pytest.raises(WeightsRefused, match=f"no trained weights ship.*under the name '{name}'"):
            load_encoder(name)
        path = SHIPPED[name].path
        save_encoder(Encoder(TwinEncoder(settings).eval(), "x"), path, metadata={}, half=True)
        path.with_suffix(".sha256").write_text(f"{read_weights(path).sha256}  {path.name}\n")
        assert load_encoder(name).encoder_id.startswith(f"{name}@")
    assert load_encoder().settings == load_encoder(spatial_dims=3).settings == SMALL
    assert load_encoder(spatial_dims=2)(radiograph()).encoder_id.startswith("radiograph-2d@")


def test_a_shipped_file_without_its_digest_is_refused(tmp_path, monkeypatch):
    """What cannot be checked is not taken."""
    monkeypatch.setattr(weights_module, "SHIPPED_FOLDER", tmp_path)
    save_encoder(made(), tmp_path / "mr-ct-3d.safetensors", metadata={})
    with pytest.raises(WeightsRefused, match=r"digest of the shipped mr-ct-3d.safetensors.*reinstall"):
        load_encoder("mr-ct-3d")
