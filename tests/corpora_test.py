"""The tools of corpora/: qtxt in both directions, the seed's generator, and what qemu-img says of the seed."""

import importlib.util
import io
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

CORPORA = pathlib.Path(os.environ["QCOW2CHECK_SOURCE_DIR"]) / "corpora"
SEED = CORPORA / "seeds" / "listing-v2-4k.qtxt"


def load(name):
    spec = importlib.util.spec_from_file_location(name, CORPORA / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


qtxt = load("qtxt")
make_seed = load("make_seed")


def image_of(text):
    size, runs = qtxt.parse(text)
    image = bytearray(size)
    for offset, data in runs:
        image[offset:offset + len(data)] = data
    return bytes(image)


def text_of(image, chunk_size=4096):
    chunks = iter(lambda stream=io.BytesIO(image): stream.read(chunk_size), b"")
    return "\n".join(qtxt.format_lines(chunks))


class QtxtTest(unittest.TestCase):
    def test_text_to_image(self):
        self.assertEqual(image_of("# c\r\n0x1: 01 0203 # c\nsize 8\n4: 0a*2"), b"\0\1\2\3\n\n\0\0")

    def test_image_to_text(self):
        image = b"\0\1" * 12 + b"\2" * 8 + b"\3\0\0\0\0\0\0\4" + bytes(range(8)) + bytes(4)
        self.assertEqual(text_of(image).splitlines(), [
            "size 0x34",
            "0x0: 00 01 * 12",
            "0x18: 02 02 02 02 02 02 02 02 03 00 00 00 00 00 00 04",
            "0x28: 00 01 02 03 04 05 06 07",
        ])

    def test_round_trip(self):
        for image in (b"", b"\0" * 9, b"\1", b"\xff" * 8195, bytes(range(256)) * 20 + b"\0" * 5000 + b"\7",
                      image_of(SEED.read_text())):
            with self.subTest(size=len(image)):
                self.assertEqual(image_of(text_of(image)), image)

    def test_errors_name_the_line(self):
        # The texts that the C++ reader's test refuses too.
        for text, error in (
                ("", "no size line"),
                ("size 1\nsize 1", "line 2: a second size"),
                ("size", "'' is not a number"),
                ("size -1", "'-1' is not a number"),
                ("size 1k", "'1k' is not a number"),
                ("size 1\n0 01", "neither a size nor OFFSET: bytes"),
                ("size 1\n0:", "no bytes after the offset"),
                ("size 1\n0: * 3", "no bytes after the offset"),
                ("size 1\n0: 012", "'012' is not hexadecimal digits in pairs"),
                ("size 1\n0x: 01", "'0x' is not a number"),
                ("size 1\n0: 01 *", "'' is not a number"),
                ("size 1\n0: 01 * 0", "a repeat count of zero"),
                ("size 4\n0: 01 * 2\n1: 05", "line 3: bytes at 0x1 are given twice"),
                ("size 4\n3: 0102", "line 2: bytes end at 0x5, past the size 0x4")):
            with self.subTest(text=text), self.assertRaises(qtxt.QtxtError) as raised:
                qtxt.parse(text)
            self.assertIn(error, str(raised.exception))

    def test_program(self):
        with tempfile.TemporaryDirectory() as folder:
            image, text = os.path.join(folder, "image"), os.path.join(folder, "text")
            program = str(CORPORA / "qtxt.py")
            subprocess.run([program, "to-image", SEED, image], check=True)
            self.assertEqual(pathlib.Path(image).read_bytes(), image_of(SEED.read_text()))
            subprocess.run([program, "from-image", image, text], check=True)
            self.assertEqual(image_of(pathlib.Path(text).read_text()), image_of(SEED.read_text()))
            pathlib.Path(text).write_text("size 1\n0: zz\n")
            failed = subprocess.run([program, "to-image", text, image], capture_output=True, text=True)
            self.assertEqual(failed.returncode, 1)
            self.assertEqual(failed.stderr, f"{text}: line 2: 'zz' is not hexadecimal digits in pairs\n")


def listing_of(image):
    """The seed's image as the dump tool lists one."""
    def rows(offset, count):
        return [" ".join(f"{byte:02X}" for byte in image[i:i + 8]) + " "
                for i in range(offset, offset + 8 * count, 8)]
    return "\n".join([
        ".\\images\\qcow2m_format.qcow2", image[:72].hex(" ").upper() + " ", "Qcow2Header=",
        "L1 Offset=4096", "L1 size  =1", *rows(0x1000, 1),
        "refcount Offset=8192", *rows(0x2000, 2),
        "refblock Offset=12288", "Level 2 Offset:16384", *rows(0x4000, 512)])


class MakeSeedTest(unittest.TestCase):
    def test_the_committed_seed_comes_out_again(self):
        lines = make_seed.make_qtxt(make_seed.Listing(listing_of(image_of(SEED.read_text()))))
        self.assertEqual("\n".join(lines) + "\n", SEED.read_text())

    def test_a_listing_that_contradicts_itself_is_refused(self):
        listing = listing_of(image_of(SEED.read_text()))
        for old, new, error in (
                ("51 46 49 FB", "51 46 49 FA", "not a version 2 qcow2 header"),
                ("L1 Offset=4096", "L1 Offset=4608", "L1 table is not where the header says"),
                ("refblock Offset=12288", "refblock Offset=0", "points to the refcount block"),
                ("80 00 00 00 00 00 E0 00", "80 00 00 00 00 00 E2 00", "not cluster aligned"),
                ("80 00 00 00 00 00 E0 00", "C0 00 00 00 00 00 E0 00", "compressed clusters"),
                ("80 00 00 00 00 00 E0 00 \n", "", "511 rows")):
            with self.subTest(error=error):
                self.assertIn(old, listing)
                with self.assertRaisesRegex(make_seed.ListingError, error):
                    list(make_seed.make_qtxt(make_seed.Listing(listing.replace(old, new))))


class SeedTest(unittest.TestCase):
    @unittest.skipUnless(shutil.which("qemu-img"), "qemu-img is not installed")
    def test_qemu_img_finds_it_consistent(self):
        with tempfile.NamedTemporaryFile(suffix=".qcow2") as image:
            image.write(image_of(SEED.read_text()))
            image.flush()
            check = subprocess.run(["qemu-img", "check", "-f", "qcow2", "--output=json", image.name],
                                   capture_output=True, text=True)
        self.assertEqual(check.returncode, 0, check.stderr)
        report = json.loads(check.stdout)
        del report["filename"]
        self.assertEqual(report, {
            "format": "qcow2", "check-errors": 0, "image-end-offset": 446464, "total-clusters": 512,
            "allocated-clusters": 104, "fragmented-clusters": 18})


if __name__ == "__main__":
    unittest.main()
