"""File formats: round trips, and the table of bad files, each of which is one clear error that names the file."""

import gzip
import io
import pickle
import re
import zipfile

import numpy as np
import pytest

from bp.data import read_cifar10, read_csv, read_idx, read_npy, read_npz, read_table
from bp.data.idx import TYPES
from bp.errors import DataError


def idx(array, code):
    header = bytes([0, 0, code, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(TYPES[code]).tobytes()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name + ".npy", data)
    return buffer.getvalue()


def cifar(records, seed=0):
    rows = np.random.default_rng(seed).integers(0, 256, (records, 3073)).astype("uint8")
    rows[:, 0] %= 10
    return rows


IMAGES = np.arange(2 * 3 * 4).reshape(2, 3, 4)
IDX, NPY, CIFAR = idx(IMAGES, 0x08), npy(IMAGES.astype("f4")), cifar(3).tobytes()
NPZ = npz(x=npy(np.ones((4, 2), "f4")), y=npy(np.arange(4)))


class Evil:
    """Unpickling this would raise AssertionError."""

    def __reduce__(self):
        return (exec, ("raise AssertionError('unpickled')",))


def objects():
    buffer = io.BytesIO()
    np.save(buffer, np.array([Evil()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def cifar3(path):
    return read_cifar10(path, 3)


def mapped(path):
    return read_npy(path, mapped=True)


def csv_labels(path):
    return read_csv(path, labels=True)


BAD_FILES = [
    # IDX
    (read_idx, b"", "expected an IDX file .* got first bytes ''"),
    (read_idx, b"\x89PNG\r\n\x1a\n", "expected an IDX file .* got first bytes '89 50 4e 47'"),
    (read_idx, b"\0\0\x08\0", "got first bytes '00 00 08 00'"),
    (read_idx, b"\0\0\x0a\x01" + bytes(8), "got first bytes '00 00 0a 01'"),
    (read_idx, IDX[:9], "expected 12 bytes of sizes, got 5: the file is truncated"),
    (read_idx, IDX[:-1], r"expected 24 bytes of an array of shape \(2, 3, 4\), got 23: the file is truncated"),
    (read_idx, IDX + b"\0", r"expected the end of the file after an array of shape \(2, 3, 4\), got more bytes"),
    (read_idx, b"\0\0\x0e\x03" + b"\xff" * 12 + b"few", "the file is truncated"),
    (read_idx, b"\0\0\x08\xff" + bytes(4 * 255), "expected sizes that fit an array"),
    (read_idx, gzip.compress(IDX[:-1], mtime=0), "expected 24 bytes"),
    (read_idx, gzip.compress(IDX + b"\0", mtime=0), "got more bytes"),
    (read_idx, gzip.compress(IDX, mtime=0)[:-12], "expected complete gzip data"),
    (read_idx, gzip.compress(IDX, mtime=0)[:5], "expected complete gzip data"),
    (read_idx, gzip.compress(IDX, mtime=0)[:-8] + bytes(8), "expected complete gzip data.*CRC"),
    (read_idx, b"\x1f\x8b" + bytes(30), "expected complete gzip data"),
    # CIFAR
    (cifar3, b"", "expected 9,219 bytes of 3 CIFAR-10 records, got 0"),
    (cifar3, CIFAR[:-1], "got 9,218: the file is truncated"),
    (cifar3, CIFAR + b"\0", "expected 3 CIFAR-10 records of 3073 bytes, got more bytes"),
    (cifar3, CIFAR[:3073] + b"\x0a" + CIFAR[3074:], r"expected labels in 0\.\.9, got 10 in record 1"),
    (cifar3, gzip.compress(CIFAR, mtime=0)[:-9], "expected complete gzip data"),
    # NPY
    (read_npy, b"", "expected an array in NPY format"),
    (read_npy, b"PK\x03\x04" + bytes(50), "expected an array in NPY format"),
    (read_npy, pickle.dumps([1, 2]), "expected an array in NPY format"),
    (read_npy, NPY[:9], "expected 2 bytes of the header's length, got 1"),
    (read_npy, NPY[:40], "expected 118 bytes of the header, got 30"),
    (read_npy, NPY[:6] + b"\x02\0" + b"\xff" * 9, "expected a header of at most 10,000 bytes"),
    (read_npy, NPY.replace(b"shape", b"shade"), "expected a header with shape, fortran_order and descr"),
    (read_npy, NPY.replace(b"(2, 3, 4)", b"(2, 3,-4)"), r"expected sizes of at least 0, got shape \(2, 3, -4\)"),
    (read_npy, NPY.replace(b"(2, 3, 4)", b"(9, 9, 9)"), "expected 2,916 bytes .* got 96: the file is truncated"),
    (read_npy, NPY.replace(b"(2, 3, 4)", b"(0,1<<62)"), "expected a header with shape"),
    (read_npy, NPY.replace(b"(2, 3, 4), }" + b" " * 18, b"(0, 4611686018427387904, 9), }"), "sizes that fit an array"),
    (read_npy, NPY.replace(b"<f4", b"xf4"), "expected an array of numbers, got dtype 'xf4'"),
    (read_npy, NPY[:-1], r"expected 96 bytes of an array of shape \(2, 3, 4\) and float32, got 95"),
    (read_npy, NPY + b"\0", "got more bytes"),
    (read_npy, objects(), "expected an array of numbers, got dtype '.O'"),
    (read_npy, npy(np.array(["a"])), "expected an array of numbers, got dtype '<U1'"),
    (mapped, NPY[:-1], "expected 224 bytes for an array .* got 223"),
    (mapped, NPY + b"\0", "expected 224 bytes for an array .* got 225"),
    (mapped, objects(), "expected an array of numbers, got dtype '.O'"),
    (mapped, npy(np.zeros((0, 3))), "expected an array with elements to map"),
    # NPZ
    (read_npz, b"", "expected an NPZ file, got a foreign or damaged one"),
    (read_npz, NPY, "expected an NPZ file, got a foreign or damaged one"),
    (read_npz, NPZ[:-30], "expected an NPZ file, got a foreign or damaged one"),
    (read_npz, npz(x=NPY), "expected an array 'y', got x"),
    (read_npz, npz(), "expected an array 'x', got no arrays"),
    (read_npz, npz(x=NPY, y=objects()), "array 'y': expected an array of numbers, got dtype '.O'"),
    (read_npz, npz(x=NPY[:-1], y=NPY), "array 'x': expected 96 bytes .* got 95"),
    (read_npz, npz(x=NPY, y=NPY + b"!"), "array 'y': .* got more bytes"),
    # CSV
    (read_csv, b"", "expected at least one line of numbers, got none"),
    (read_csv, b"a,b\n", "expected at least one line of numbers, got none"),
    (read_csv, b"1,2\n\n3,x\n", "line 3, column 2: expected a finite float32, got 'x'"),
    (read_csv, b"a,b\n1,2\n3,\n", "line 3, column 2: expected a finite float32, got ''"),
    (read_csv, b"1,2\n1,nan\n", "line 2, column 2: expected a finite float32, got 'nan'"),
    (read_csv, b"1,2\n-inf,2\n", "line 2, column 1: expected a finite float32, got '-inf'"),
    (read_csv, b"1,2\n1e39,2\n", "line 2, column 1: expected a finite float32, got '1e39'"),
    (read_csv, b"1,2\n1_0,2\n", "line 2, column 1: expected a finite float32, got '1_0'"),
    (read_csv, b"1,2\n1,2,3\n", "line 2: expected 2 columns, got 3"),
    (read_csv, b"a,b\n1,2,3\n", "line 2: expected 2 columns, got 3"),
    (read_csv, b"1;2\n3;4\n", "expected at least one line of numbers|expected a finite float32"),
    (read_csv, b"1\n2\n", "expected at least two columns, inputs and a target, got 1"),
    (read_csv, b"\xff\xfe1\0,\0", "expected text in UTF-8"),
    (read_csv, gzip.compress(b"1,2\n" * 99, mtime=0)[:-9], "expected complete gzip data"),
    (csv_labels, b"1,2\n\n1,2.5\n", "line 3, column 2: expected a whole number, got 2.5"),
]


@pytest.mark.parametrize(("read", "content", "message"), BAD_FILES)
def test_bad_file(tmp_path, read, content, message):
    path = tmp_path / "file.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: .*(?:{message})"):
        read(path)


READERS = [read_idx, cifar3, read_npy, mapped, read_npz, read_csv]


@pytest.mark.parametrize("read", READERS)
def test_missing_file_and_folder(tmp_path, read):
    with pytest.raises(DataError, match=r"nothing: cannot be read \(No such file"):
        read(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("read", "content"),
    [
        (read_idx, IDX),
        (read_idx, gzip.compress(IDX, mtime=0)),
        (cifar3, gzip.compress(CIFAR, mtime=0)),
        (read_npy, NPY),
        (mapped, NPY),
        (read_npz, NPZ),
        (read_csv, b"a,b,c\n1,2.5,3\n4,5e-3,6\n"),
    ],
    ids=["idx", "idx.gz", "cifar", "npy", "npy mapped", "npz", "csv"],
)
def test_damaged_bytes_read_or_raise_a_data_error(tmp_path, read, content):
    """Whatever is in a file, a reader returns an array or raises a DataError that names the file."""
    generator = np.random.default_rng(0)
    path = tmp_path / "file"
    for trial in range(150):
        data = bytearray(content)
        if trial % 3 == 0:
            data = data[: generator.integers(len(data))]
        for place in generator.integers(len(data), size=generator.integers(1, 4)) if data else ():
            data[place] = generator.integers(256)
        path.write_bytes(data)
        try:
            read(path)
        except DataError as error:
            assert str(error).startswith(str(path))
        path.unlink()


@pytest.mark.parametrize("code", TYPES)
@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 5), (1, 1, 1, 1)])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_idx_round_trip(tmp_path, code, shape, pack):
    array = (np.random.default_rng(0).random(shape) * 100).astype(TYPES[code])
    (tmp_path / "a.gz").write_bytes(pack(idx(array, code)))
    got = read_idx(tmp_path / "a.gz")
    np.testing.assert_array_equal(got, array)
    assert got.dtype == array.dtype.newbyteorder("=") and got.dtype.isnative and got.shape == shape


def test_cifar_comes_channel_last(tmp_path):
    rows = cifar(3)
    (tmp_path / "batch.bin").write_bytes(rows.tobytes())
    images, labels = read_cifar10(tmp_path / "batch.bin", 3)
    assert images.shape == (3, 32, 32, 3) and images.dtype == np.uint8 and images.flags.c_contiguous
    np.testing.assert_array_equal(labels, rows[:, 0])
    assert labels.dtype == np.int64
    assert images[2, 5, 7, 1] == rows[2, 1 + 1024 + 5 * 32 + 7]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["f4", ">f8", "u1", "i8", "?"])
def test_npy_round_trip(tmp_path, order, dtype):
    array = np.asarray(IMAGES % 5, dtype, order=order)
    np.save(tmp_path / "a.npy", array)
    for got in (read_npy(tmp_path / "a.npy"), read_npy(tmp_path / "a.npy", mapped=True)):
        np.testing.assert_array_equal(got, array)
    assert isinstance(got, np.memmap)


def test_npz_round_trip(tmp_path):
    x, y = np.asfortranarray(np.random.default_rng(0).random((4, 3))), np.arange(4)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    np.savez_compressed(tmp_path / "b.npz", inputs=x, labels=y)
    for got in (read_npz(tmp_path / "a.npz"), read_npz(tmp_path / "b.npz", x="inputs", y="labels")):
        np.testing.assert_array_equal(got[0], x)
        np.testing.assert_array_equal(got[1], y)


def test_csv_targets_headers_and_separators(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('\ufeff"size", kind ,price\r\n1.5,2,3e2\r\n\r\n-4, 5 ,+6\r\n', encoding="utf-8")
    x, y = read_csv(path)
    np.testing.assert_array_equal(x, np.array([[1.5, 2], [-4, 5]]))
    np.testing.assert_array_equal(y, [300, 6])
    assert x.dtype == y.dtype == np.float32
    x, y = read_csv(path, "kind", labels=True)
    np.testing.assert_array_equal(x, np.array([[1.5, 300], [-4, 6]]))
    np.testing.assert_array_equal(y, [2, 5])
    assert y.dtype == np.int64
    np.testing.assert_array_equal(read_csv(path, 0)[1], np.float32([1.5, -4]))
    np.testing.assert_array_equal(read_table(path), np.float32([[1.5, 2, 300], [-4, 5, 6]]))
    with pytest.raises(DataError, match="expected a column 'prise', got size, kind, price"):
        read_csv(path, "prise")
    with pytest.raises(DataError, match=r"expected a target column in -3\.\.2, got 3"):
        read_csv(path, 3)
    path.write_text("1  2\n3\t4\n")
    np.testing.assert_array_equal(read_table(path, delimiter=None), [[1, 2], [3, 4]])
    with pytest.raises(DataError, match="expected a column 'b', got no header"):
        read_csv(path, "b", delimiter=None)
