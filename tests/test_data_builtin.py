"""Built-in data sets: splits, where their files are found, and what is said when they are not."""

import gzip
import io
import tarfile

import numpy as np
import pytest

from bp import data
from bp.data import Loader, cifar10, load, lookup, mnist, stratified_split
from bp.data.source import Source
from bp.data.splits import random_order
from bp.errors import ConfigurationError, DataError

RNG = np.random.default_rng(0)


def everything(dataset):
    return dataset.batch(np.arange(len(dataset)))


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype("uint8").tobytes()


def mnist_files(train=60, test=10):
    files = {}
    for prefix, count in (("train", train), ("t10k", test)):
        files[f"{prefix}-images-idx3-ubyte"] = idx(RNG.integers(0, 256, (count, 28, 28)))
        files[f"{prefix}-labels-idx1-ubyte"] = idx(np.arange(count) % 10)
    return files


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


@pytest.fixture(autouse=True)
def small_and_offline(monkeypatch, tmp_path):
    """Files of a few samples, no user's settings, and URLs that nobody answers."""
    monkeypatch.setattr(mnist, "COUNTS", (60, 10))
    monkeypatch.setattr(mnist, "VALID", 20)
    monkeypatch.setattr(cifar10, "RECORDS", 20)
    monkeypatch.setattr(cifar10, "VALID", 10)
    refused = ("http://127.0.0.1:1/",)
    for module in (mnist, data.fashion_mnist):
        sources = tuple(Source(s.name, s.size, s.sha256, refused) for s in module.SOURCES)
        monkeypatch.setattr(module, "SOURCES", sources)
    monkeypatch.setattr(cifar10, "ARCHIVE", Source(cifar10.ARCHIVE.name, 10, "0" * 64, refused))
    monkeypatch.delenv(lookup.ENVIRONMENT, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")


def test_digits():
    splits = load("digits")
    assert [len(s) for s in (splits.train, splits.valid, splits.test)] == [1437, 180, 180]
    assert splits.task == "classification" and len(splits.classes) == 10
    rows, seen = [], []
    for part in (splits.train, splits.valid, splits.test):
        x, y = everything(part)
        assert x.shape[1:] == (64,) and x.dtype == np.float32 and x.min() == 0 and x.max() == 1 and y.dtype == np.int64
        share = np.bincount(y, minlength=10) / len(y)
        np.testing.assert_allclose(share, np.bincount(everything(splits.train)[1]) / 1437, atol=1.5 / len(y))
        rows.append(x)
        seen.append(y)
    assert len(np.unique(np.concatenate(rows), axis=0)) == 1797  # no sample in two splits
    # The splits are fixed for good: results of one version are compared with those of the next.
    assert [int((np.arange(len(y)) * y).sum() % 9973) for y in seen] == [72, 2176, 2423]


def test_diabetes_is_standardised_by_its_training_samples():
    splits = load("diabetes")
    assert [len(s) for s in (splits.train, splits.valid, splits.test)] == [310, 66, 66]
    x, y = everything(splits.train)
    assert x.shape == (310, 10) and y.shape == (310, 1) and x.dtype == y.dtype == np.float32
    for values in (x, y):
        np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(values.std(axis=0), 1, rtol=1e-5)
    assert splits.task == "regression" and splits.classes == ()
    mean, deviation = splits.target_scale
    whole = np.concatenate([everything(s)[1] for s in (splits.train, splits.valid, splits.test)]) * deviation + mean
    assert (whole.min().round(), whole.max().round()) == (25, 346)  # the study's range


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("pack", [None, gzip.compress], ids=["plain", "gzip"])
def test_mnist_files(tmp_path, name, pack):
    files = mnist_files()
    write(tmp_path / name, {n + ".gz": pack(c) for n, c in files.items()} if pack else files)
    splits = load(name, tmp_path)
    assert [len(s) for s in (splits.train, splits.valid, splits.test)] == [40, 20, 10]
    for part in (splits.train, splits.valid, splits.test):
        x, y = everything(part)
        assert x.shape[1:] == (28, 28, 1) and x.dtype == np.uint8 and y.dtype == np.int64
        np.testing.assert_array_equal(np.bincount(y), len(part) // 10)
    x, _ = next(Loader(splits.train, 4, transform=splits.train_transform).epoch(0))
    assert x.dtype == np.float32 and Loader(splits.test, transform=splits.eval_transform).sample_shape == (28, 28, 1)


def cifar_rows(seed, count=20):
    rows = np.random.default_rng(seed).integers(0, 256, (count, 3073)).astype("uint8")
    rows[:, 0] = np.arange(count) % 10
    return rows.tobytes()


def cifar_files(**changed):
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    return {name: cifar_rows(i) for i, name in enumerate(names)} | changed


def archive(files, folder="cifar-10-batches-bin"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in {"batches.meta.txt": b"airplane\n", "../escape": b"no", **files}.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("layout", ["files", "folder", "archive"])
def test_cifar10_files(tmp_path, layout):
    folder = tmp_path / "cifar10"
    if layout == "archive":
        write(folder, {"cifar-10-binary.tar.gz": archive(cifar_files())})
    else:
        write(folder / ("cifar-10-batches-bin" if layout == "folder" else "."), cifar_files())
    for _ in range(2):
        splits = load("cifar10", tmp_path)
        assert [len(s) for s in (splits.train, splits.valid, splits.test)] == [90, 10, 20]
    x, y = everything(splits.test)
    first = np.frombuffer(cifar_files()["test_batch.bin"], "uint8")[1:3073].reshape(3, 32, 32)
    np.testing.assert_array_equal(x[0], first.transpose(1, 2, 0))
    x, y = next(Loader(splits.train, 7, transform=splits.train_transform).epoch(0))
    assert x.shape == (7, 32, 32, 3) and x.dtype == np.float32 and y.shape == (7,)
    if layout == "archive":
        assert sorted(p.name for p in (folder / "cifar-10-batches-bin").iterdir()) == sorted(cifar_files())
        assert not (tmp_path / "escape").exists() and not (folder / "escape").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be unpacked"),
        (b"not an archive", "cannot be unpacked"),
        (archive(cifar_files())[:5000], "cannot be unpacked"),
        (archive(cifar_files(), folder="elsewhere"), r"expected data_batch_1\.bin, .*got none of that name"),
        (archive(cifar_files(**{"test_batch.bin": b"short"})), r"expected 61,460 bytes of test_batch\.bin, got 5"),
    ],
)
def test_bad_cifar_archive(tmp_path, content, message):
    write(tmp_path / "cifar10", {"cifar-10-binary.tar.gz": content})
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz: " + message):
        load("cifar10", tmp_path)
    folder = tmp_path / "cifar10" / "cifar-10-batches-bin"
    for path in folder.iterdir() if folder.exists() else ():
        assert path.read_bytes() == cifar_files()[path.name]  # nothing half-written


@pytest.mark.parametrize(
    ("name", "folder", "files", "message"),
    [
        (
            "mnist",
            "mnist",
            {"t10k-labels-idx1-ubyte": idx(np.arange(9))},
            r"t10k-labels.*: expected uint8 of shape \(10,\)",
        ),
        (
            "mnist",
            "mnist",
            {"train-labels-idx1-ubyte": idx(np.full(60, 10))},
            r"train-labels.*labels in 0\.\.9, got 10",
        ),
        (
            "mnist",
            "mnist",
            {"train-images-idx3-ubyte": idx(np.zeros((60, 28, 27)))},
            r"got uint8 of shape \(60, 28, 27\)",
        ),
        ("mnist", "mnist", {"train-images-idx3-ubyte": b"<html>"}, "train-images.*: expected an IDX file"),
        ("cifar10", "cifar10", {"data_batch_3.bin": cifar_rows(0)[:-5]}, r"data_batch_3\.bin: expected .* truncated"),
        ("cifar10", "cifar10", {"test_batch.bin": cifar_rows(0, 21)}, r"test_batch\.bin: expected 20 .* got more"),
    ],
)
def test_bad_files_are_named(tmp_path, name, folder, files, message):
    write(tmp_path / folder, (mnist_files() if name == "mnist" else cifar_files()) | files)
    with pytest.raises(DataError, match=message):
        load(name, tmp_path)


def test_lookup_order(tmp_path, monkeypatch):
    assert lookup.data_folder("mnist", None) == tmp_path / "cache" / "bp" / "mnist"
    monkeypatch.setenv("BP_DATA_DIR", str(tmp_path / "shared"))
    assert lookup.data_folder("mnist", None) == tmp_path / "shared" / "mnist"
    assert lookup.data_folder("mnist", tmp_path / "mine") == tmp_path / "mine" / "mnist"
    monkeypatch.setenv("BP_DATA_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert lookup.data_folder("mnist", None) == tmp_path / ".cache" / "bp" / "mnist"
    assert lookup.data_folder("mnist", "~/data") == tmp_path / "data" / "mnist"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (
            "mnist",
            r"train-images-idx3-ubyte\.gz, train-labels-idx1-ubyte\.gz, t10k-images-.*, t10k-labels-idx1-ubyte\.gz",
        ),
        ("fashion-mnist", r"train-images-idx3-ubyte\.gz, train-labels-idx1-ubyte\.gz"),
        ("cifar10", r"cifar-10-binary\.tar\.gz in .* \(or the six files of it, data_batch_1\.bin to data_batch_5\.bin"),
    ],
)
def test_no_files_and_no_network_says_which_files_go_where(tmp_path, name, wanted):
    with pytest.raises(DataError, match=rf"^data set '{name}' needs {wanted}") as caught:
        load(name, tmp_path)
    message = str(caught.value)
    assert f"in {tmp_path / name}" in message and "BP_DATA_DIR" in message and "refused" in message


def test_only_missing_files_are_asked_for(tmp_path):
    files = mnist_files()
    del files["t10k-labels-idx1-ubyte"]
    write(tmp_path / "mnist", files)
    with pytest.raises(DataError, match=r"needs t10k-labels-idx1-ubyte\.gz in"):
        load("mnist", tmp_path)


def test_unknown_name():
    with pytest.raises(ConfigurationError, match="no data set 'minst'; did you mean 'mnist'"):
        load("minst")
    assert list(data.DATASETS) == ["cifar10", "diabetes", "digits", "fashion-mnist", "mnist"]


def test_stratified_split():
    labels = np.repeat(np.arange(4), [50, 30, 15, 5])
    parts = stratified_split(labels, (60, 20), seed=3)
    assert [len(p) for p in parts] == [60, 20] and len(np.unique(np.concatenate(parts))) == 80
    np.testing.assert_allclose(np.bincount(labels[parts[0]]), [30, 18, 9, 3], atol=1)
    np.testing.assert_array_equal(parts[0], stratified_split(labels, (60, 20), seed=3)[0])
    assert (parts[0] != stratified_split(labels, (60, 20), seed=4)[0]).any()


def test_random_order_is_fixed_for_good():
    assert random_order(8, seed=0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
