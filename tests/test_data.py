"""Image sets from archives and folders: decoded once, split for good, and never half read."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import time
import warnings
from hashlib import md5
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import CIFAR10

from haq_env.data import Dataset, Split, dataset_name, load_dataset
from haq_env.data.cifar import CLASSES
from haq_env.data.splits import balanced_order
from haq_env.errors import InputError
from haq_env.evaluation import Recipe
from haq_env.evaluation.finetune import Images
from haq_env.make import make_task

TRAIN, TEST = 12, 3  # images a class
REAL = Path(__file__).parent.parent.parent / "shared" / "data" / "cifar10"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HAQ_ENV_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    """Something smooth and unlike the others, of the given width and height."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BILINEAR)


def write_images(root: Path, groups, count: int, seed: int, size=(32, 32), suffix="png") -> None:
    for number, group in enumerate(groups):
        (root / group).mkdir(parents=True)
        for index in range(count):
            path = root / group / f"{index:04d}.{suffix}"
            picture(seed + 1000 * number + index, size).save(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """CIFAR-10 in small, as class folders."""
    write_images(tmp_path / "images" / "train", CLASSES, TRAIN, 0)
    write_images(tmp_path / "images" / "test", CLASSES, TEST, 50_000)
    return tmp_path / "images"


@pytest.fixture
def archives(folder, tmp_path) -> Path:
    """The same images as two archives."""
    packed = tmp_path / "packed"
    packed.mkdir()
    for part in ("train", "test"):
        with tarfile.open(packed / f"{part}.tar.gz", "w:gz") as archive:
            archive.add(folder / part, arcname=part)
    return packed


def small(root: Path, **options) -> Dataset:
    return load_dataset(f"cifar10:{root}", val=20, **options)


def pixels(path: Path) -> bytes:
    return np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1).tobytes()


# -- CIFAR-10 ----------------------------------------------------------------------------------


def test_every_image_of_an_archive_is_in_one_split_with_the_label_of_its_folder(archives, folder):
    data = small(archives)
    assert [len(part) for part in (data.train, data.val, data.test)] == [100, 20, 30]
    assert data.input_shape == (3, 32, 32)
    for whole, parts in (("train", (data.train, data.val)), ("test", (data.test,))):
        expected = sorted(
            (pixels(path), label)
            for label, name in enumerate(CLASSES)
            for path in (folder / whole / name).iterdir()
        )
        found = sorted(
            (image.tobytes(), int(label))
            for part in parts
            for image, label in zip(part.images, part.labels, strict=True)
        )
        assert found == expected


def test_folders_and_archives_of_the_same_images_are_split_alike(archives, folder):
    packed, loose = small(archives), small(folder)
    assert packed.about["sha256"] == loose.about["sha256"]
    assert (packed.val.images == loose.val.images).all()
    other = small(archives, seed=1)
    assert other.about["sha256"]["val"] != packed.about["sha256"]["val"]


def test_every_beginning_of_a_split_has_the_classes_in_proportion(archives):
    data = small(archives)
    assert np.bincount(data.val.labels).tolist() == [2] * 10
    assert np.bincount(data.train.first(50).labels).tolist() == [5] * 10
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    order = balanced_order(labels, 0)
    assert sorted(order) == list(range(1000))
    for count in (10, 100, 730):
        shares = np.bincount(labels[order[:count]]) / count
        np.testing.assert_allclose(shares, [0.6, 0.3, 0.1], atol=2 / count)


def test_what_is_decoded_once_is_mapped_ever_after(archives, cache):
    first = small(archives)
    written = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
    start = time.perf_counter()
    second = small(archives)
    assert time.perf_counter() - start < 0.2
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")} == written
    assert isinstance(second.train.images, np.memmap)
    assert (first.train.images == second.train.images).all()


def test_a_changed_source_is_decoded_again_and_its_old_copy_goes_away(folder, cache):
    before = small(folder)
    for path in sorted((folder / "test").rglob("*.png"))[:3]:
        picture(7).save(path)
    after = small(folder)
    assert after.about["sha256"]["test"] != before.about["sha256"]["test"]
    assert len(list(cache.rglob("about.json"))) == 1


def test_one_folder_is_decoded_once_however_it_is_spelled(folder, cache, monkeypatch):
    small(folder)
    monkeypatch.chdir(folder.parent)
    written = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
    assert small(Path(folder.name)).digest() == small(folder).digest()
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")} == written


def test_a_digest_names_the_images(folder, archives):
    before = small(folder)
    assert small(archives).digest() == before.digest()
    picture(7).save(next((folder / "test").rglob("*.png")))
    assert small(folder).digest() != before.digest()


@pytest.mark.parametrize("harm", ["cut", "lost", "left"])
def test_a_damaged_cache_is_made_anew(archives, cache, harm):
    whole = small(archives)
    expected = np.array(whole.train.images)
    del whole
    (found,) = cache.rglob("train-images.npy")
    if harm == "cut":
        found.write_bytes(found.read_bytes()[:-1000])
    elif harm == "lost":
        (found.parent / "about.json").unlink()
    else:  # what a killed process leaves
        found.parent.rename(found.parent.with_name(found.parent.name + ".part"))
    assert (small(archives).train.images == expected).all()
    assert len(list(cache.rglob("train-images.npy"))) == 1


def test_nothing_that_is_done_to_the_arrays_reaches_the_cache(archives):
    data = small(archives)
    before = int(data.train.images[0, 0, 0, 0])
    data.train.images[0, 0, 0, 0] ^= 255
    assert small(archives).train.images[0, 0, 0, 0] == before


def test_mapped_images_are_normalised_without_a_copy_of_all_of_them(archives):
    data = small(archives)
    images = Images(data.val, data, torch.device("cpu"))
    assert np.shares_memory(images._raw.numpy(), data.val.images)
    mean, std = (np.reshape(each, (3, 1, 1)) for each in (data.mean, data.std))
    expected = (data.val.images[:4] / 255 - mean) / std
    np.testing.assert_allclose(images.batch(slice(0, 4)).numpy(), expected, atol=1e-5)


def test_torchvisions_files_give_the_original_pixels(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    home = tmp_path / "original" / CIFAR10.base_folder
    home.mkdir(parents=True)
    lists = {}
    for part, names in (("train_list", ["data_batch_1"]), ("test_list", ["test_batch"])):
        raw = {
            "data": rng.integers(0, 256, (30, 3072), dtype=np.uint8),
            "labels": np.repeat(np.arange(10), 3).tolist(),
        }
        lists[part] = raw
        content = pickle.dumps(raw)
        (home / names[0]).write_bytes(content)
        monkeypatch.setattr(CIFAR10, part, [[names[0], md5(content).hexdigest()]])
    meta = pickle.dumps({"label_names": list(CLASSES)})
    (home / "batches.meta").write_bytes(meta)
    about = {"filename": "batches.meta", "key": "label_names", "md5": md5(meta).hexdigest()}
    monkeypatch.setattr(CIFAR10, "meta", about)
    data = load_dataset(f"cifar10:{home.parent}", val=10)
    found = sorted(image.tobytes() for part in (data.train, data.val) for image in part.images)
    assert found == sorted(row.tobytes() for row in lists["train_list"]["data"])
    assert data.about["files"] == ["original pixels"]
    shutil.rmtree(tmp_path / "cache")
    (home / "test_batch").write_bytes(b"not what torchvision knows")
    with pytest.raises(InputError, match="cifar-10-batches-py is damaged or not complete"):
        load_dataset(f"cifar10:{home.parent}", val=10)


def write_binary(folder: Path, originals: Path) -> Path:
    """The authors' files for C programs: a label and three planes an image, classes mixed."""
    home = originals / "cifar-10-batches-bin"
    home.mkdir(parents=True)
    rng = np.random.default_rng(5)
    for whole, names in (("train", [f"data_batch_{n}" for n in range(1, 6)]), ("test", ["test"])):
        listed = [sorted((folder / whole / name).iterdir()) for name in CLASSES]
        turns = rng.permutation(np.repeat(np.arange(10), len(listed[0])))
        records = [bytes([label]) + pixels(listed[label].pop(0)) for label in turns]
        for number, name in enumerate(names):
            file = name if whole == "train" else "test_batch"
            part = records[number * len(records) // len(names) :][: len(records) // len(names)]
            (home / f"{file}.bin").write_bytes(b"".join(part))
    return originals


def test_original_files_hold_out_the_images_that_numbered_image_files_hold_out(folder, tmp_path):
    originals = small(write_binary(folder, tmp_path / "originals"))
    assert originals.about["sha256"] == small(folder).about["sha256"]
    assert originals.about["files"] == ["original pixels"]
    assert not originals.note


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.unlink(), "data_batch_2.bin is missing or empty"),
        (lambda file: file.write_bytes(b""), "data_batch_2.bin is missing or empty"),
        (lambda file: file.write_bytes(file.read_bytes()[:-7]), "data_batch_2.bin is cut off"),
        (lambda file: file.write_bytes(file.read_bytes()[:-3073]), "only in part"),
        (lambda file: file.write_bytes(b"\xff" * 3073), "has the label 255: it is not CIFAR-10"),
        (lambda file: file.write_bytes(bytes(30_730_000)), "data_batch_2.bin is damaged"),
        (lambda file: (file.unlink(), file.mkdir()), "data_batch_2.bin cannot be read: Is a dir"),
        (lambda file: (file.unlink(), file.symlink_to("no")), "data_batch_2.bin cannot be read"),
    ],
)
def test_a_damaged_file_of_the_originals_is_refused(folder, tmp_path, spoil, message):
    originals = write_binary(folder, tmp_path / "originals")
    spoil(originals / "cifar-10-batches-bin" / "data_batch_2.bin")
    with pytest.raises(InputError, match=message):
        small(originals)


def test_two_processes_at_once_decode_only_once(archives, cache):
    code = (
        "import sys; from haq_env.data import load_dataset;"
        "print(load_dataset('cifar10:' + sys.argv[1], val=20).about['sha256']['train'])"
    )
    command = [sys.executable, "-c", code, str(archives)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {process.communicate()[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(answers) == 1
    assert len(list(cache.rglob("about.json"))) == 1


# -- folders and ImageNet ----------------------------------------------------------------------


def test_a_folder_of_class_folders_is_split_in_three(tmp_path):
    write_images(tmp_path / "pets", ["cat", "dog"], 10, 0, suffix="jpg")
    data = load_dataset(f"imagefolder:{tmp_path / 'pets'}", val=0.25)
    assert (data.name, data.classes) == ("imagefolder:pets", 2)
    assert [len(part) for part in (data.train, data.val, data.test)] == [12, 4, 4]
    everything = {image.tobytes() for p in (data.train, data.val, data.test) for image in p.images}
    assert len(everything) == 20
    np.testing.assert_allclose(data.mean, data.train.images.mean(axis=(0, 2, 3)) / 255, rtol=1e-9)
    np.testing.assert_allclose(data.std, data.train.images.std(axis=(0, 2, 3)) / 255, rtol=1e-9)


def test_images_to_test_on_come_from_their_own_folder(tmp_path):
    write_images(tmp_path / "pets" / "train", ["cat", "dog"], 10, 0, (40, 30))
    write_images(tmp_path / "pets" / "val", ["cat", "dog"], 3, 5_000, (30, 40))
    data = load_dataset(f"imagefolder:{tmp_path / 'pets'}", size=16)
    assert [len(part) for part in (data.train, data.val, data.test)] == [18, 2, 6]
    assert data.input_shape == (3, 16, 16)


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_held_out_images_may_have_another_common_name(name, tmp_path):
    for number, part in enumerate(("train", name, "test")):
        write_images(tmp_path / "pets" / part, ["cat", "dog"], 2 + number, 1_000 * number)
    data = load_dataset(f"imagefolder:{tmp_path / 'pets'}")
    assert data.about["counts"] == {"train": 4, "val": 6, "test": 8}
    write_images(tmp_path / "pets" / "val", ["cat", "dog"], 2, 9_000)
    with pytest.raises(InputError, match=f"pets has val and {name}: one of them is too many"):
        load_dataset(f"imagefolder:{tmp_path / 'pets'}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "8"}, "size must be an integer, at least 1, not '8'"),
        ({"size": (8, 8)}, "size must be an integer"),
        ({"val": "a"}, "val must be a share above 0 and below 1, not 'a'"),
        ({"test": 1}, "test must be a share above 0 and below 1, not 1"),
        ({"seed": -1}, "seed must be an integer, 0 or more, not -1"),
    ],
)
def test_options_of_a_folder_that_make_no_sense_are_refused(options, message, tmp_path):
    write_images(tmp_path, ["cat", "dog"], 4, 0)
    with pytest.raises(InputError, match=message):
        load_dataset(f"imagefolder:{tmp_path}", **options)


def test_images_to_hold_out_come_from_their_own_folder_where_there_is_one_to_test_on(tmp_path):
    brightness = {}
    for number, part in enumerate(("train", "val", "test")):
        write_images(tmp_path / "pets" / part, ["cat", "dog"], 2 + number, 1_000 * number)
        brightness[part] = {
            np.asarray(Image.open(path).convert("RGB")).sum()
            for path in (tmp_path / "pets" / part).rglob("*.*")
        }
    data = load_dataset(f"imagefolder:{tmp_path / 'pets'}", val=0.9)
    assert data.about["counts"] == {"train": 4, "val": 6, "test": 8}
    for part, sums in brightness.items():
        assert {image.sum() for image in getattr(data, part).images} == sums
    write_images(tmp_path / "pets" / "val", ["bird"], 2, 9_000)
    with pytest.raises(InputError, match=r"val and .*train must have the same class folders.*bird"):
        load_dataset(f"imagefolder:{tmp_path / 'pets'}")


@pytest.fixture
def imagenet(tmp_path) -> Path:
    """Twenty images of four classes, of all shapes, in ImageNet's layout."""
    root = tmp_path / "imagenet"
    for part, count, size in (("train", 4, (90, 70)), ("val", 1, (64, 100))):
        write_images(root / part, [f"n0{i}" for i in range(4)], count, len(part), size, "jpg")
    return root


def test_imagenet_draws_classes_and_keeps_the_labels_of_all(imagenet):
    data = load_dataset(f"imagenet:{imagenet}", classes=2, val=np.int64(2), size=32)
    drawn = [int(name[1:]) for name in data.about["classes"]]
    assert (len(drawn), data.classes) == (2, 4)
    for part in (data.train, data.val, data.test):
        assert set(part.labels.tolist()) == set(drawn)
    assert [len(part) for part in (data.train, data.val, data.test)] == [6, 2, 2]
    every = load_dataset(f"imagenet:{imagenet}", size=32)
    assert [len(part) for part in (every.train, every.val, every.test)] == [11, 5, 4]


def test_imagenet_images_are_cut_as_torchvision_cuts_them(imagenet):
    data = load_dataset(f"imagenet:{imagenet}", size=56)
    view = transforms.Compose([transforms.Resize(64), transforms.CenterCrop(56)])
    paths = sorted((imagenet / "val").rglob("*.jpg"))
    expected = [np.asarray(view(Image.open(path))).transpose(2, 0, 1) for path in paths]
    order = np.argsort(data.test.labels)
    assert (data.test.images[order] == np.stack(expected)).all()


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A narrow MobileNet-V2 for four classes of ImageNet, untrained."""
    from haq_env.networks import load_network
    from haq_env.networks.checkpoint import save_checkpoint
    from haq_env.networks.layers_json import layers_to_json
    from haq_env.networks.trace import trace

    build = {"classes": 4, "image_size": 48, "width": 0.25, "in_channels": 3}
    module = load_network("mobilenet_v2", **build)
    about = {
        "network": "mobilenet_v2",
        "dataset": "imagenet",
        "dataset_options": {"size": 48},
        "build": build,
        "layer_table": layers_to_json(trace(module, (3, 48, 48), name="mobilenet_v2")),
    }
    path = tmp_path / "v2.safetensors"
    save_checkpoint(path, module, about)
    return path


def test_a_search_episode_runs_on_imagenet_and_mobilenet_v2(imagenet, checkpoint):
    env = gym.make(
        "haq_env:HAQ-BISMO-Edge-v0",
        network="mobilenet_v2",
        dataset=f"imagenet:{imagenet}",
        checkpoint=checkpoint,
        evaluator=Recipe(steps=2, batch_size=4, bn_images=8),
        budget=0.5,
    )
    env.action_space.seed(0)
    env.reset(seed=0)
    done = False
    while not done:
        *_, done, _, info = env.step(env.action_space.sample())
    assert info["accuracy"] in [20.0 * right for right in range(6)]  # five held-out images
    assert info["cost_ratio"] <= 0.5


def test_weights_for_other_classes_are_refused(checkpoint, tmp_path):
    write_images(tmp_path / "two", ["a", "b"], 10, 0, (48, 48))
    task = make_task("mobilenet_v2", f"imagefolder:{tmp_path / 'two'}", checkpoint=checkpoint)
    with pytest.raises(InputError, match=r"v2\.safetensors is for 4 classes, and .* has 2"):
        _ = task.float_accuracy


def test_a_network_of_other_classes_than_an_imagenet_folder_is_refused(imagenet):
    class Thousand(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv = torch.nn.Conv2d(3, 4, 7, 4), torch.nn.Conv2d(4, 4, 3)
            self.head = torch.nn.Linear(4, 1000)

        def forward(self, images):
            return self.head(self.conv(self.stem(images)).mean((2, 3)))

    task = make_task(Thousand(), f"imagenet:{imagenet}", evaluator="ptq_bn", budget="w4a4")
    with pytest.raises(InputError, match=r"the network has 1000 outputs, and data set 'imagenet'"):
        _ = task.float_accuracy


# -- names -------------------------------------------------------------------------------------


def test_a_name_is_without_the_path():
    assert dataset_name("cifar10:/some/where") == dataset_name("cifar10") == "cifar10"
    assert dataset_name("mine:data") == "mine:data"
    images = Split(np.zeros((2, 1, 2, 2), np.uint8), np.array([0, 1]))
    assert dataset_name(Dataset("own", 2, (0.5,), (0.5,), images, images, images)) == "own"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digits:here", {}, "data set 'digits' has no folder"),
        ("cifar10:x", {"sizes": 3}, "unknown option of data set 'cifar10': 'sizes'"),
        ("imagefolder", {}, "needs a folder: write imagefolder:FOLDER"),
        ("imagenet:nowhere", {}, "image folder nowhere does not exist"),
        ("cifar10:nowhere", {}, "CIFAR-10 folder nowhere does not exist: it must hold train.tar"),
        ("cifar100", {}, "unknown data set 'cifar100'. Did you mean 'cifar10'"),
    ],
)
def test_what_cannot_be_found_is_one_clear_error(name, options, message):
    with pytest.raises(InputError, match=message):
        load_dataset(name, **options)


# -- bad input ---------------------------------------------------------------------------------


def refused(root: Path, message: str, cache: Path) -> None:
    """See that it is refused, and that nothing half done is left."""
    with pytest.raises(InputError, match=message):
        small(root)
    assert not list(cache.rglob("*.npy"))


def test_an_archive_that_is_cut_short_is_refused(archives, cache):
    path = archives / "train.tar.gz"
    path.write_bytes(path.read_bytes()[:-5000])
    refused(archives, r"archive .*train\.tar\.gz is damaged or cut short", cache)


def test_a_file_that_is_no_archive_is_refused(archives, cache):
    (archives / "test.tar.gz").write_bytes(b"<html>not found</html>")
    refused(archives, r"archive .*test\.tar\.gz is damaged or cut short", cache)


def test_a_missing_archive_is_named(archives, cache):
    (archives / "test.tar.gz").unlink()
    refused(archives, r"CIFAR-10 folder .*packed is not complete: it must hold", cache)


def test_a_broken_image_is_named(folder, cache):
    path = folder / "train" / "frog" / "0003.png"
    path.write_bytes(path.read_bytes()[:100])
    refused(folder, r"image .*train/frog/0003\.png cannot be decoded", cache)


def test_a_broken_jpeg_in_an_archive_is_named(folder, archives, cache):
    with tarfile.open(archives / "train.tar.gz", "w:gz") as archive:
        archive.add(folder / "train", arcname="train")
        content = io.BytesIO()
        picture(0).save(content, "JPEG")
        for group in CLASSES:
            short = tarfile.TarInfo(f"train/{group}/9999.jpg")
            short.size = len(content.getvalue()) // 2
            archive.addfile(short, io.BytesIO(content.getvalue()[: short.size]))
    refused(archives, r"image train/\w+/9999\.jpg in .*train\.tar\.gz cannot be", cache)


def test_a_class_folder_without_images_is_named(folder, cache):
    for path in (folder / "train" / "ship").iterdir():
        path.unlink()
    refused(folder, r"class folder .*train/ship has no images", cache)


def test_classes_that_are_not_those_of_cifar_10_are_named(folder, cache):
    (folder / "test" / "ship").rename(folder / "test" / "boat")
    refused(folder, r"test lacks the classes ship and has the folders boat", cache)


def test_a_half_copied_folder_is_refused(folder, cache):
    for path in sorted((folder / "train" / "deer").iterdir())[5:]:
        path.unlink()
    refused(folder, "has 5 images of class 'deer' and 12 of another", cache)


def test_images_of_another_size_are_named(tmp_path):
    write_images(tmp_path / "pets", ["cat", "dog"], 10, 0)
    picture(0, (32, 40)).save(tmp_path / "pets" / "dog" / "0004.png")
    with pytest.raises(InputError, match=r"32 x (40|32) pixels, and .*give size=N"):
        load_dataset(f"imagefolder:{tmp_path / 'pets'}")


def test_a_cache_folder_that_cannot_be_used_is_named(archives, cache):
    cache.write_text("a file is in the way")
    with pytest.raises(InputError, match=r"cache folder .*cache/decoded cannot be used: .*HAQ_ENV"):
        small(archives)


def test_without_a_network_it_is_said_what_to_give_instead(tmp_path, cache):
    code = "from haq_env.data import load_dataset; load_dataset('cifar10')"
    env = {**os.environ, "https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert "CIFAR-10 cannot be downloaded to" in last
    assert "dataset='cifar10:FOLDER'" in last


# -- the real images ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason="the archives of CIFAR-10 are not here")
def test_the_real_archives_give_60_000_images_in_balanced_splits(cache):
    data = load_dataset(f"cifar10:{REAL}")
    for part, count in ((data.train, 45_000), (data.val, 5_000), (data.test, 10_000)):
        assert np.bincount(part.labels).tolist() == [count // 10] * 10
    means = data.train.images[::9].mean(axis=(0, 2, 3)) / 255
    np.testing.assert_allclose(means, data.mean, atol=0.003)
    (about,) = cache.rglob("about.json")
    assert json.loads(about.read_text())["counts"] == {"train": 45000, "val": 5000, "test": 10000}


def grey(seed: int) -> np.ndarray:
    return np.asarray(picture(seed).convert("L"))


def test_images_of_16_bits_are_scaled_and_not_cut_off(tmp_path):
    for part in ("train", "val", "test"):
        for label in range(2):
            (tmp_path / part / str(label)).mkdir(parents=True)
            for index in range(4):
                pixels = grey(label + 2 * index)
                kind = "png" if index % 2 else "tif"
                wide = Image.fromarray(pixels.astype(np.uint16) * 257)
                wide.save(tmp_path / part / str(label) / f"{index}.{kind}")
    data = load_dataset(f"imagefolder:{tmp_path}", size=32, val=0.5)
    wanted = {grey(seed).tobytes() for seed in range(8)}
    assert {image[0].tobytes() for image in data.test.images} == wanted


def test_images_of_floats_are_refused(tmp_path):
    for part in ("train", "val", "test"):
        for label in range(2):
            (tmp_path / part / str(label)).mkdir(parents=True)
            for index in range(2):
                image = Image.fromarray(grey(index).astype(np.float32) / 255)
                image.save(tmp_path / part / str(label) / f"{index}.tif")
    with pytest.raises(InputError, match=r"tif cannot be decoded: has pixels of 32 bits or floats"):
        load_dataset(f"imagefolder:{tmp_path}", size=32, val=0.5)


@pytest.mark.parametrize(("mode", "channels"), [("P", 3), ("RGBA", 3), ("RGB", 1), ("P", 1)])
def test_images_of_pil_are_converted_to_the_channels_of_the_data_set(mode, channels):
    pairs = [(picture(seed).convert(mode), seed % 2) for seed in range(4)]
    about = {"classes": 2, "mean": [0.5] * channels, "std": [0.25] * channels}
    data = Dataset.of("mine", pairs, pairs, pairs, **about)
    for (image, _), ours in zip(pairs, data.test.images, strict=True):
        wanted = np.asarray(image.convert("L" if channels == 1 else "RGB"))
        assert np.array_equal(ours, wanted[None] if channels == 1 else wanted.transpose(2, 0, 1))


def test_images_of_pil_with_floats_are_refused():
    pairs = [(Image.fromarray(grey(seed).astype(np.float32)), 0) for seed in range(2)]
    with pytest.raises(InputError, match="image 0 has pixels of 32 bits or floats"):
        Dataset.of("mine", pairs, pairs, pairs, classes=2, mean=[0.5], std=[0.25])


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ((0, 100, 100), "100 of 100 test images are val images, too"),
        ((0, 100, 198), "2 of 100 test images are val images, too"),
        ((0, 30, 200), "70 of 100 val images are train images, too"),
        ((0, 200, 0), "100 of 100 test images are train images, too"),
        ((0, 100, 199), None),  # one in a hundred, as real sets have
        ((0, 100, 200), None),
    ],
)
def test_images_that_are_in_two_splits_are_told(parts, told):
    images = [(picture(seed), seed % 2) for seed in range(300)]
    splits = [images[start : start + 100] for start in parts]
    about = {"classes": 2, "mean": [0.5] * 3, "std": [0.25] * 3}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Dataset.of("mine", *splits, **about)
    assert [told in str(each.message) for each in caught] == ([] if told is None else [True])
    assert all(Path(each.filename) == Path(__file__) for each in caught)  # the caller's line
