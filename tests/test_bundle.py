"""A MONAI bundle carries an encoder there and back, and nothing that a bundle holds is ever run."""

import io
import json
import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch
import yaml

from medsiam.encoding import bundle as bundle_module
from medsiam.encoding.bundle import CHECKPOINT, INFERENCE, METADATA, WEIGHTS, export_bundle, load_bundle
from medsiam.encoding.record import KEY, recorded
from medsiam.encoding.weights import load_encoder
from medsiam.errors import WeightsRefused
from tests.phantoms import radiograph, small_head
from tests.test_encoder import SMALL, SMALL_FLAT, made


@pytest.fixture
def folder(tmp_path):
    """A bundle as it is exported."""
    export_bundle(made(), tmp_path / "drawn")
    return tmp_path / "drawn"


def images():
    """Two inputs for the small network."""
    return torch.rand(2, 1, 24, 24, 24, generator=torch.Generator().manual_seed(3))


def zipped(folder, to, *, inside="drawn/"):
    """The bundle's files in a zip, below a folder of this name."""
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, inside + path.relative_to(folder).as_posix())
    return to


def rewrite(path, change):
    """A JSON config with one change made to it."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("way", ["folder", "zip", "zip without a folder"])
def test_an_exported_encoder_comes_back_the_same(folder, tmp_path, way):
    """Its embedding to the last bit, its id with the digest of its file."""
    path = folder
    if way != "folder":
        path = zipped(folder, tmp_path / "b.zip", inside="drawn/" if way == "zip" else "")
    loaded, head = load_encoder(path, spatial_dims=3), small_head().volume
    assert loaded.settings == SMALL
    assert loaded.encoder_id == f"drawn@{loaded.weights_sha256[:12]}"
    assert np.array_equal(loaded(head).embedding, made()(head).embedding)


def test_a_radiograph_encoder_goes_the_same_way(tmp_path):
    """And its metadata speak of radiographs."""
    encoder_id = export_bundle(made(SMALL_FLAT), tmp_path / "flat")
    loaded = load_bundle(tmp_path / "flat")
    assert loaded.encoder_id == encoder_id
    assert np.array_equal(loaded(radiograph()).embedding, made(SMALL_FLAT)(radiograph()).embedding)
    metadata = json.loads((tmp_path / "flat" / METADATA).read_text())
    assert "radiographs" in metadata["task"]
    assert metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == [64, 64]


@pytest.mark.filterwarnings("ignore:parsing config_file")
def test_monai_builds_the_network_from_our_config(folder):
    """With MONAI's own parser and its own loader; the embedding is ours."""
    # MONAI takes seconds to import, which the refusals above need not wait for.
    from monai.bundle import ConfigParser, load

    parser = ConfigParser()
    parser.read_config(str(folder / INFERENCE))
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(folder / CHECKPOINT, weights_only=True))
    loaded = load(name="drawn", bundle_dir=str(folder.parent), workflow_type="inference", device="cpu").eval()
    with torch.no_grad():
        ours = made().network(images()).embedding
        assert torch.equal(network(images()).embedding, ours)
        assert torch.equal(loaded(images()).embedding, ours)
    assert network.settings == SMALL


def test_the_metadata_have_what_monai_asks_for(folder):
    """Every key that MONAI itself writes, and every key of its tensor formats."""
    from monai.bundle.utils import DEFAULT_METADATA

    metadata = json.loads((folder / METADATA).read_text())
    assert set(DEFAULT_METADATA) <= set(metadata)
    assert {type(metadata[key]) is type(value) for key, value in DEFAULT_METADATA.items()} == {True}
    wanted = {"type", "format", "modality", "num_channels", "spatial_shape", "dtype", "value_range",
              "is_patch_data", "channel_def"}  # fmt: skip
    formats = metadata["network_data_format"]
    assert set(formats["inputs"]["image"]) == set(formats["outputs"]["pred"]) == wanted
    assert formats["outputs"]["pred"]["num_channels"] == SMALL.embedding_size


def test_a_bundle_says_what_it_is_for_and_under_which_licence(folder):
    """Wherever it travels."""
    sentence = "Research use only. Not a medical device."
    assert sentence in (folder / "docs" / "README.md").read_text()
    assert json.loads((folder / METADATA).read_text())["intended_use"] == sentence
    assert "Apache License, Version 2.0" in (folder / "LICENSE").read_text()


def test_our_own_configs_hold_no_expression(folder):
    """What is refused from others is not written."""
    text = (folder / INFERENCE).read_text() + (folder / METADATA).read_text()
    assert '"$' not in text and '"@' not in text


EVIL = "$__import__('os').system('touch {mark}')"
INJECTIONS = {
    "imports.0": lambda config, evil: config.update(imports=[evil]),
    "network_def.settings.told": lambda config, evil: config["network_def"]["settings"].update(told=evil),
    "network_def._target_": lambda config, evil: config["network_def"].update(_target_="os.system"),
    "handlers.0._target_": lambda config, evil: config.update(
        handlers=[{"_target_": "os.system", "command": "true"}]
    ),
    "more": lambda config, evil: config.update(more="%other.json::key"),
    "network_def::_target_": lambda config, evil: config.update({"network_def::_target_": "os.system"}),
}  # fmt: skip


@pytest.mark.parametrize("key", INJECTIONS)
@pytest.mark.parametrize("packed", [False, True])
def test_a_config_that_would_run_something_is_refused_with_its_key(folder, tmp_path, key, packed):
    """And nothing ran: an expression in a bundle is a program."""
    mark = tmp_path / "ran"
    rewrite(folder / INFERENCE, lambda config: INJECTIONS[key](config, EVIL.format(mark=mark)))
    path = zipped(folder, tmp_path / "b.zip") if packed else folder
    with pytest.raises(WeightsRefused, match=f"'{key}', which MONAI would run; nothing was run"):
        load_encoder(path)
    assert not mark.exists()


def test_the_injection_is_one_that_monai_runs(folder, tmp_path):
    """The refusals above are of something real."""
    from monai.bundle import ConfigParser

    mark = tmp_path / "ran"
    rewrite(folder / INFERENCE, lambda config: config.update(more=EVIL.format(mark=mark)))
    parser = ConfigParser()
    parser.read_config(str(folder / INFERENCE))
    parser.get_parsed_content("more")
    assert mark.exists()


def test_an_expression_in_metadata_or_yaml_is_refused_too(folder):
    """MONAI reads all three; a plain YAML config is accepted."""
    config = json.loads((folder / INFERENCE).read_text())
    (folder / INFERENCE).unlink()
    path = folder / "configs" / "inference.yaml"
    path.write_text(yaml.safe_dump(config))
    assert load_bundle(folder).settings == SMALL
    path.write_text(yaml.safe_dump(config | {"run": "$print(1)"}))
    with pytest.raises(WeightsRefused, match=r"inference.yaml holds an expression at 'run'"):
        load_bundle(folder)
    path.write_text("a: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(WeightsRefused, match="no plain JSON or YAML"):
        load_bundle(folder)
    for grows in ("a: &a [1]\nb: [*a, *a]\n", "[" * 100_000):
        path.write_text(grows)
        with pytest.raises(WeightsRefused, match="no plain JSON or YAML"):
            load_bundle(folder)
    path.unlink()
    rewrite(folder / METADATA, lambda config: config.update(task="$print(1)"))
    with pytest.raises(WeightsRefused, match=r"metadata.json holds an expression at 'task'"):
        load_bundle(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[1]", "\x00", "\xff"])
def test_a_config_that_is_no_mapping_is_refused(folder, text):
    """In one line, whatever the parser raises."""
    (folder / INFERENCE).write_bytes(text.encode("latin-1"))
    with pytest.raises(WeightsRefused, match=r"inference.json is no (plain|mapping)"):
        load_bundle(folder)


def test_a_config_beyond_the_size_of_any_is_refused(folder):
    """Parsing it would take the memory of a scan."""
    rewrite(folder / INFERENCE, lambda config: config.update(more="x" * 100_000))
    assert load_bundle(folder).settings == SMALL
    rewrite(folder / INFERENCE, lambda config: config.update(more="x" * 300_000))
    with pytest.raises(WeightsRefused, match=r"inference.json is larger"):
        load_bundle(folder)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def without_safetensors(folder):
    (folder / WEIGHTS).unlink()
    return folder


@pytest.mark.parametrize("writer", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
@pytest.mark.parametrize("beside_safetensors", [True, False])
def test_a_checkpoint_with_code_is_refused_and_did_not_run(folder, tmp_path, writer, beside_safetensors):
    """In torch's archive or bare, and also where it would not be needed."""
    mark = tmp_path / "ran"
    writer({"weight": Touch(mark)}, folder / CHECKPOINT)
    with pytest.raises(WeightsRefused, match="pickle") as refused:
        load_encoder(folder if beside_safetensors else without_safetensors(folder))
    with pytest.raises(WeightsRefused, match=r"pickle.*safetensors"):
        load_encoder(folder / CHECKPOINT)
    assert "\n" not in str(refused.value)
    assert not mark.exists()


def test_a_bundle_with_the_usual_checkpoint_alone_is_read(folder):
    """MONAI's users have model.pt; the record stands in metadata.json."""
    head = small_head().volume
    loaded = load_encoder(without_safetensors(folder))
    assert np.array_equal(loaded(head).embedding, made()(head).embedding)
    rewrite(folder / METADATA, lambda config: config.pop("medsiam"))
    with pytest.raises(WeightsRefused, match="bundle of another architecture"):
        load_encoder(folder)


def test_two_weight_files_that_differ_are_refused(folder):
    """Who trained on in MONAI would be answered by the old weights."""
    tensors = torch.load(folder / CHECKPOINT, weights_only=True)
    tensors["project.bias"] += 1.0
    torch.save(tensors, folder / CHECKPOINT)
    with pytest.raises(WeightsRefused, match=r"other numbers in models/model.pt"):
        load_bundle(folder)
    assert load_bundle(without_safetensors(folder)).settings == SMALL


WRONG = {
    "holds the architecture 'other/9'": lambda section: section.update(architecture="other/9"),
    "damaged record": lambda section: section["settings"].update(channels=[8, 10**9]),
    "lacks .* tensors": lambda section: section["settings"].update(channels=[8, 16, 24, 32]),
    "the architecture needs": lambda section: section["settings"].update(channels=[8, 16, 32]),
    "does not match": lambda section: section.update(tensors_sha256="0" * 64),
}


@pytest.mark.parametrize("reason", WRONG)
def test_another_architecture_is_refused_in_one_clear_line(folder, reason):
    """The record of metadata.json is checked as that of a weight file."""
    rewrite(without_safetensors(folder) / METADATA, lambda config: WRONG[reason](config["medsiam"]))
    with pytest.raises(WeightsRefused, match=reason) as refused:
        load_encoder(folder)
    assert "\n" not in str(refused.value)


def test_a_checkpoint_with_our_record_is_read_and_one_without_is_not(tmp_path):
    """A state_dict alone could be of any network."""
    path, head = tmp_path / "step.pt", small_head().volume
    tensors, record = recorded(made().network, "step", {"steps": 3})
    torch.save({KEY: record, "state_dict": tensors}, path)
    assert np.array_equal(load_encoder(path)(head).embedding, made()(head).embedding)
    torch.save(tensors, path)
    with pytest.raises(WeightsRefused, match="does not record an encoder"):
        load_encoder(path)
    torch.save({KEY: record | {"architecture": "resnet50"}, "state_dict": tensors}, path)
    with pytest.raises(WeightsRefused, match="holds the architecture 'resnet50'"):
        load_encoder(path)


@pytest.mark.parametrize("record", [None, 7, "{", [1], {"a": torch.zeros(1)}, {(1, 2): 3}])
def test_a_checkpoint_with_a_record_that_is_none_is_refused(tmp_path, record):
    """With the file's name, not with the parser's words."""
    torch.save({KEY: record, "state_dict": recorded(made().network, "x", {})[0]}, tmp_path / "x.pt")
    with pytest.raises(WeightsRefused, match=r"x.pt .a pickle. (has a damaged|does not record)"):
        load_encoder(tmp_path / "x.pt")


STRANGE = {
    "a sparse tensor": torch.zeros(3, 3).to_sparse(),
    "whole numbers": torch.zeros(3, dtype=torch.int64),
    "a tensor on no device": torch.zeros(3, device="meta"),
    "text": "x",
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_checkpoint_with_more_than_plain_tensors_is_refused(tmp_path, kind):
    """Each would fill the memory or fail late."""
    torch.save({"a": STRANGE[kind]}, tmp_path / "x.pt")
    with pytest.raises(WeightsRefused, match="no plain float32 or float16 tensor"):
        load_encoder(tmp_path / "x.pt")


def test_a_view_of_one_number_with_a_vast_shape_is_refused(tmp_path):
    """Four bytes in the file, four terabytes once it is looked at."""
    torch.save({"a": torch.zeros(1).expand(10**12)}, tmp_path / "x.pt")
    with pytest.raises(WeightsRefused, match="same numbers many times over"):
        load_encoder(tmp_path / "x.pt")


def test_a_damaged_or_compressed_checkpoint_is_refused(tmp_path):
    """Zeros pack a thousandfold."""
    whole = io.BytesIO()
    torch.save({"a": torch.zeros(100_000)}, whole)
    path = tmp_path / "x.pt"
    path.write_bytes(whole.getvalue()[:-500])
    with pytest.raises(WeightsRefused, match="damaged"):
        load_encoder(path)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(WeightsRefused, match="unpacks to more than it holds"):
        load_encoder(path)


@pytest.mark.parametrize("name", ["../evil", "drawn/../../evil", "/evil", "C:/evil", "..\\evil"])
def test_a_zip_whose_names_lead_out_of_it_is_refused(folder, tmp_path, name):
    """And nothing was written beside it."""
    (tmp_path / "inner").mkdir()
    path = zipped(folder, tmp_path / "inner" / "b.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "x")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(WeightsRefused, match="leads out of it"):
        load_encoder(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_locked_zip_is_refused(folder, tmp_path):
    """By a line, not by the zip library's error."""
    path = zipped(folder, tmp_path / "b.zip")
    raw = bytearray(path.read_bytes())
    for sign, flags_at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(sign) + flags_at] |= 1
    start = raw.index(b"PK\x01\x02")
    while (start := raw.find(b"PK\x01\x02", start)) >= 0:
        raw[start + 8] |= 1
        start += 4
    path.write_bytes(raw)
    with pytest.raises(WeightsRefused, match="damaged or locked zip"):
        load_encoder(path)


def test_a_zip_with_a_link_two_bundles_or_none_is_refused(folder, tmp_path):
    """Which one is meant cannot be told."""
    link = zipfile.ZipInfo("drawn/configs/link")
    link.external_attr = 0o120777 << 16
    path = zipped(folder, tmp_path / "b.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(WeightsRefused, match="leads out of it"):
        load_encoder(path)
    with zipfile.ZipFile(zipped(folder, path), "a") as archive:
        archive.writestr("other/" + METADATA, "{}")
    with pytest.raises(WeightsRefused, match="and 2 bundles"):
        load_encoder(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(WeightsRefused, match="and 0 bundles"):
        load_encoder(path)


def test_a_zip_that_is_too_large_or_none_is_refused(folder, tmp_path, monkeypatch):
    """Before it fills the disk."""
    path = zipped(folder, tmp_path / "b.zip")
    monkeypatch.setattr(bundle_module, "LARGEST_FILE_BYTES", 1000)
    with pytest.raises(WeightsRefused, match="unpacks to more"):
        load_encoder(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(WeightsRefused, match="damaged or locked zip"):
        load_encoder(path)
    with pytest.raises(WeightsRefused, match=r"no file or folder 'nowhere.zip'"):
        load_encoder(tmp_path / "nowhere.zip")


def test_a_folder_that_is_no_bundle_is_refused(tmp_path):
    """A folder of scans, for example."""
    with pytest.raises(WeightsRefused, match="is no MONAI bundle"):
        load_encoder(tmp_path)


def test_a_folder_with_something_in_it_is_not_written_over(folder, tmp_path):
    """An empty one is filled; where writing fails, nothing stays."""
    before = (folder / WEIGHTS).read_bytes()
    with pytest.raises(WeightsRefused, match="not empty; choose a new folder"):
        export_bundle(made(seed=1), folder)
    assert (folder / WEIGHTS).read_bytes() == before
    shutil.rmtree(folder)
    folder.mkdir()
    broken = made()
    with torch.no_grad():
        broken.network.project.bias.fill_(torch.nan)
    with pytest.raises(WeightsRefused, match="not finite"):
        export_bundle(broken, folder)
    assert list(tmp_path.rglob("*")) == [folder]
    assert export_bundle(made(), folder) == load_bundle(folder).encoder_id


def test_a_place_that_cannot_be_written_is_refused_by_name(folder):
    """A file stands where the folder should."""
    with pytest.raises(WeightsRefused, match=r"cannot write the bundle to .*: Not a directory; check"):
        export_bundle(made(), folder / "LICENSE" / "x")
