"""Every JSON report follows docs/qcow2check.schema.json: of good, damaged, unusual and missing images."""

import fcntl
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

try:
    import jsonschema
except ImportError:
    print("python3-jsonschema is not installed")
    sys.exit(77)

PROGRAM = os.environ["QCOW2CHECK_PROGRAM"]
SOURCE = pathlib.Path(os.environ["QCOW2CHECK_SOURCE_DIR"])
SCHEMA = json.loads((SOURCE / "docs" / "qcow2check.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
# Where the real images of public projects are, if they are.
REAL_IMAGES = SOURCE.parent / "shared" / "images"

IMAGE_CHECK_KEYS = ["filename", "format", "check-errors", "corruptions", "leaks", "corruptions-fixed",
                    "leaks-fixed", "image-end-offset", "total-clusters", "allocated-clusters",
                    "fragmented-clusters", "compressed-clusters"]
CLUSTER = 65536
L1, L2, DATA = 3 * CLUSTER, 4 * CLUSTER, 5 * CLUSTER
COPIED = 1 << 63

needs_qemu = unittest.skipUnless(shutil.which("qemu-img") and shutil.which("qemu-io"), "no QEMU")


def small_image(data_clusters=8):
    """A version 3 image laid out as qemu-img does: header, refcounts, L1, one L2 table, data."""
    clusters = 5 + data_clusters
    image = bytearray(clusters * CLUSTER)
    struct.pack_into(">4sIQIIQIIQQIIQQQQII", image, 0, b"QFI\xfb", 3, 0, 0, 16, 64 << 20, 0, 1, L1, CLUSTER, 1,
                     0, 0, 0, 0, 0, 4, 104)
    struct.pack_into(">Q", image, CLUSTER, 2 * CLUSTER)
    struct.pack_into(f">{clusters}H", image, 2 * CLUSTER, *[1] * clusters)
    struct.pack_into(">Q", image, L1, COPIED | L2)
    for i in range(data_clusters):
        struct.pack_into(">Q", image, L2 + 8 * i, COPIED | DATA + i * CLUSTER)
    return image


def poked(offset, layout, *values):
    image = small_image()
    struct.pack_into(">" + layout, image, offset, *values)
    return image


def filled(offset, data):
    image = small_image()
    image[offset:offset + len(data)] = data
    return image


def with_backing_name(name):
    image = poked(8, "QI", 512, len(name))
    image[512:512 + len(name)] = name
    return image


# name: (image, verdict, exit code)
DAMAGED = {
    "clean": (small_image(), "clean", 0),
    "leak": (poked(L2, "Q", 0), "leaks", 3),
    "refcount-0": (poked(2 * CLUSTER + 2 * 4, "H", 0), "corrupt", 2),
    "refcount-block-zeroed": (filled(2 * CLUSTER, bytes(CLUSTER)), "corrupt", 2),
    "refcount-block-garbage": (filled(2 * CLUSTER, bytes(range(1, 251)) * 262), "corrupt", 2),
    "refcount-table-zeroed": (poked(CLUSTER, "Q", 0), "corrupt", 2),
    "refcount-table-misaligned": (poked(CLUSTER, "Q", 0x20200), "corrupt", 2),
    "refcount-table-outside": (poked(48, "Q", 1 << 40), "corrupt", 2),
    "l1-zeroed": (poked(L1, "Q", 0), "corrupt", 2),
    "l1-outside": (poked(40, "Q", 1 << 62), "corrupt", 2),
    "l1-too-small": (poked(24, "Q", 1 << 40), "corrupt", 2),
    "l2-text": (filled(L2, b"Nov 22 11:30:00 vm kernel: hello\n" * 1900), "corrupt", 2),
    "l2-misaligned": (poked(L1, "Q", COPIED | L2 + 512), "corrupt", 2),
    "data-outside": (poked(L2, "Q", COPIED | 1 << 40), "corrupt", 2),
    "data-misaligned": (poked(L2, "Q", COPIED | DATA + 512), "corrupt", 2),
    "data-on-refcount-block": (poked(L2, "Q", COPIED | 2 * CLUSTER), "corrupt", 2),
    "cross-link": (poked(L2 + 8, "Q", COPIED | DATA), "corrupt", 2),
    "reserved-bits": (poked(L2, "Q", COPIED | DATA | 1 << 61), "corrupt", 2),
    # Only --verify-data sees that nothing can be decompressed.
    "compressed-garbage": (poked(L2, "Q", 1 << 62 | DATA), "clean", 0),
    "snapshots-lost": (poked(60, "IQ", 3, 1 << 40), "corrupt", 2),
    "corrupt-bit": (poked(72, "Q", 2), "corrupt", 2),
    "dirty-bit": (poked(72, "Q", 1), "clean", 0),
    "unknown-feature": (poked(72, "Q", 1 << 40), "unsupported", 1),
    "version-9": (poked(4, "I", 9), "unsupported", 1),
    "version-1": (poked(4, "I", 1), "not-qcow2", 63),
    "cluster-bits-63": (poked(20, "I", 63), "corrupt", 2),
    "refcount-order-9": (poked(96, "I", 9), "corrupt", 2),
    "cut-in-header": (small_image()[:50], "corrupt", 2),
    "cut-in-data": (small_image()[:6 * CLUSTER + 5], "corrupt", 2),
    "magic-lost": (poked(0, "I", 0), "corrupt", 2),
    "raw": (bytearray(CLUSTER), "not-qcow2", 63),
    # A backing file name that is no UTF-8 and would clear a terminal.
    "name": (with_backing_name(b"\xff\xfe\x1b[2J\"\\\x9b"), "clean", 0),
}


def run(*arguments, encoding="utf-8"):
    return subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, encoding=encoding, timeout=60,
                          stdin=subprocess.DEVNULL)


class SchemaTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.path = pathlib.Path(cls.folder.name)
        cls.code_order = [line.split()[1] for line in run("--list-codes").stdout.splitlines()]

    def write(self, name, data):
        path = self.path / name
        path.write_bytes(data)
        return path

    def validate(self, report):
        # Iterating gives all errors at once, which says more than the first.
        errors = [f"{list(e.absolute_path)}: {e.message}" for e in
                  VALIDATOR.iter_errors(report)]
        self.assertEqual(errors, [])
        self.assertEqual(list(report)[:len(IMAGE_CHECK_KEYS)], IMAGE_CHECK_KEYS)
        places = [(d.get("host-offset", 0), self.code_order.index(d["code"])) for d in report["diagnostics"]]
        self.assertEqual(places, sorted(places))
        totals = [t["code"] for t in report["diagnostic-totals"]]
        self.assertEqual(totals, [c for c in self.code_order if c in totals])
        self.assertLessEqual({d["code"] for d in report["diagnostics"]}, set(totals))

    def report(self, *arguments, exit_code=None):
        """The report on one image, validated; also the exit code if none is expected."""
        ran = run("--json", *arguments)
        report = json.loads(ran.stdout)
        self.validate(report)
        if exit_code is None:
            return report, ran.returncode
        self.assertEqual(ran.returncode, exit_code, ran.stderr)
        return report

    def error_report(self, *arguments, verdict="incomplete", exit_code=1):
        report = self.report(*arguments, exit_code=exit_code)
        self.assertEqual(report["verdict"], verdict)
        self.assertEqual(report["check-errors"], 1)
        self.assertEqual(report["diagnostics"], [])
        self.assertFalse(report["coverage"]["complete"])
        return report["error"]

    def test_the_schema_is_valid_and_closed(self):
        jsonschema.Draft202012Validator.check_schema(SCHEMA)
        report = self.report(self.write("closed.qcow2", small_image()), exit_code=0)
        for spoilt in ({**report, "more": 1}, {**report, "verdict": "fine"}, {**report, "leaks": -1},
                       {**report, "leaks": 1}, {k: v for k, v in report.items() if k != "leaks"}):
            self.assertFalse(VALIDATOR.is_valid(spoilt))

    def test_the_codes_are_those_of_the_table(self):
        self.assertEqual(SCHEMA["$defs"]["code"]["enum"], self.code_order)

    def test_damaged_images(self):
        for name, (image, verdict, exit_code) in DAMAGED.items():
            for options in ([], ["-U"], ["--verify-data", "--chain"], ["--max-findings=1"]):
                if options == ["--verify-data", "--chain"] and name in ("name", "compressed-garbage"):
                    continue  # they have more to say then
                with self.subTest(image=name, options=options):
                    report = self.report(*options, self.write(f"{name}.qcow2", image), exit_code=exit_code)
                    self.assertEqual(report["verdict"], verdict)

    def test_every_table_overwritten_or_cut_anywhere(self):
        for cluster in range(5):
            for data in (b"\xff" * CLUSTER, b"\x00\x01" * (CLUSTER // 2), bytes(8) + b"\x80" * 8):
                with self.subTest(cluster=cluster, data=data[:16]):
                    self.report(self.write("overwritten.qcow2", filled(cluster * CLUSTER, data)))
        for size in (1, 71, 72, 103, 104, 512, CLUSTER, 2 * CLUSTER + 1, 4 * CLUSTER - 1, 5 * CLUSTER):
            with self.subTest(size=size):
                self.report(self.write("cut.qcow2", small_image()[:size]))

    def check_plan(self, path):
        """The report of a dry run, which leaves the image alone and says of it what a check says."""
        before = path.read_bytes()
        checked, exit_code = self.report(path)
        plan = self.report("--repair", "--dry-run", path, exit_code=exit_code)
        self.assertEqual(path.read_bytes(), before)
        self.assertEqual(list(self.path.glob(f"{path.name}.undo*")), [])
        for key in ("verdict", "corruptions", "leaks", "data", "coverage", "diagnostic-totals"):
            self.assertEqual(plan[key], checked[key], key)
        self.assertFalse(plan["repair"]["changed"])
        self.assertEqual([plan["corruptions-fixed"], plan["leaks-fixed"]], [0, 0])
        self.assertTrue({d["repair"]["status"] for d in plan["diagnostics"]} <= {"none", "planned", "declined"})
        self.check_writes(plan, before)
        return plan

    def check_writes(self, plan, image):
        """The old bytes of each write are what is there when its turn comes."""
        image = bytearray(image).ljust(plan["repair"]["new-size"], b"\0")
        digests_only = []
        for write in plan["repair"]["writes"]:
            begin, end = write["offset"], write["offset"] + write["length"]
            self.assertLessEqual(end, plan["repair"]["new-size"])
            if "old-bytes" not in write:
                digests_only.append((begin, end))
            elif not any(b < end and begin < e for b, e in digests_only):
                self.assertEqual(image[begin:end], bytes.fromhex(write["old-bytes"]))
                image[begin:end] = bytes.fromhex(write["new-bytes"])

    def test_repair_of_damaged_images(self):
        for name, (image, _, _) in DAMAGED.items():
            with self.subTest(image=name):
                path = self.write(f"repair-{name}.qcow2", image)
                plan = self.check_plan(path)
                repaired, exit_code = self.report("--repair", path)
                self.assertEqual(repaired["repair"]["writes"], plan["repair"]["writes"])
                self.assertEqual(repaired["repair"]["changed"], bool(plan["repair"]["writes"]))
                self.assertEqual(repaired["repair"].get("undo-file"), plan["repair"].get("undo-file"))
                statuses = [(d["code"], d["repair"]["status"]) for d in repaired["diagnostics"]]
                self.assertNotIn("failed", dict(statuses).values())
                self.check_state_after(path, repaired, exit_code)
                if repaired["repair"]["changed"]:
                    undo = run("undo", repaired["repair"]["undo-file"], path)
                    self.assertEqual(undo.returncode, 0, undo.stderr)
                self.assertEqual(path.read_bytes(), image)

    def check_state_after(self, path, repaired, exit_code):
        """A fresh check says what the repair said of the image, and a second repair changes nothing."""
        checked = self.report(path, exit_code=exit_code)
        fixed = repaired["verdict"] == "repaired"
        self.assertEqual("clean" if fixed else repaired["verdict"], checked["verdict"])
        for key in ("check-errors", "corruptions", "leaks", "image-end-offset", "allocated-clusters"):
            self.assertEqual(repaired[key], checked[key], key)
        self.assertEqual(repaired["repair"]["held-back"], checked["repair"]["held-back"])
        again = self.report("--repair", path, exit_code=exit_code)
        self.assertEqual(again["repair"]["writes"], [])
        self.assertFalse(again["repair"]["changed"])

    def test_findings_are_capped_but_totals_are_exact(self):
        image = small_image(100)
        for i in range(0, 100, 2):
            struct.pack_into(">H", image, 2 * CLUSTER + 2 * (5 + i), 0)
        report = self.report("--max-findings=3", self.write("capped.qcow2", image), exit_code=2)
        listed = [d for d in report["diagnostics"] if d["code"] == "refcount-zero-in-use"]
        totals = {t["code"]: t for t in report["diagnostic-totals"]}
        self.assertEqual(len(listed), 3)
        self.assertEqual(totals["refcount-zero-in-use"]["findings"], 50)
        self.assertEqual(totals["refcount-zero-in-use"]["count"], 50)

    def test_names_are_ascii_in_the_output(self):
        path = self.write("name\x1b[31m\u9999\u202e.qcow2", DAMAGED["name"][0])
        ran = run("--json", path, encoding=None)
        self.assertTrue(all(0x20 <= byte < 0x7f or byte == 0x0a for byte in ran.stdout))
        report = json.loads(ran.stdout)
        self.validate(report)
        self.assertEqual(report["filename"], str(path))
        self.assertEqual(report["image"]["backing-file"], "\ufffd\ufffd\x1b[2J\"\\\ufffd")

    def test_what_cannot_be_checked(self):
        image = self.write("good.qcow2", small_image())
        empty = self.write("empty.qcow2", b"")
        fifo = self.path / "fifo"
        os.mkfifo(fifo)
        self.assertIn("No such file", self.error_report(self.path / "missing.qcow2"))
        self.assertIn("directory", self.error_report(self.path))
        self.assertIn("empty", self.error_report(empty))
        self.assertIn("regular file", self.error_report(fifo))
        self.assertIn("regular file", self.error_report("/dev/null"))
        self.assertIn("--bogus", self.error_report("--bogus", image))
        self.assertIn("IMAGE", self.error_report())
        self.assertIn("--output", self.error_report("--output=xml", image))
        self.assertIn("No such file", self.error_report("--repair", self.path / "missing.qcow2"))
        self.assertIn("--repair", self.error_report("--dry-run", image))
        self.assertIn("-U", self.error_report("--repair", "-U", image))
        self.assertIn("raw", self.error_report("--repair", "-f", "raw", image, verdict="unsupported", exit_code=63))
        self.assertIn("raw", self.error_report("-f", "raw", image, verdict="unsupported", exit_code=63))

    def test_locked(self):
        image = self.write("locked.qcow2", small_image())
        with open(image, "rb") as file:
            # Byte 101: "I write this image". struct flock of a 64-bit Linux.
            lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 101, 1, 0)
            fcntl.fcntl(file, getattr(fcntl, "F_OFD_SETLK", 37), lock)
            self.assertIn("in use", self.error_report(image, verdict="locked"))
            self.assertIn("in use", self.error_report("--repair", image, verdict="locked"))
            self.report("-U", image, exit_code=0)
        self.report(image, exit_code=0)

    def test_several_images_are_json_lines_in_their_order(self):
        names = ["leak", "clean", "raw", "refcount-0"]
        paths = [self.write(f"{name}.several", DAMAGED[name][0]) for name in names]
        paths.insert(2, self.path / "not-there")
        ran = run("--json", *paths)
        reports = [json.loads(line) for line in ran.stdout.splitlines()]
        self.assertEqual([r["filename"] for r in reports], [str(p) for p in paths])
        self.assertEqual([r["verdict"] for r in reports], ["leaks", "clean", "incomplete", "not-qcow2", "corrupt"])
        for report in reports:
            self.validate(report)
        self.assertEqual(ran.returncode, 2)

    def test_the_corpora(self):
        for text in sorted((SOURCE / "corpora").rglob("*.qtxt")):
            with self.subTest(image=text.name):
                image = self.path / f"{text.stem}.qcow2"
                subprocess.run([SOURCE / "corpora" / "qtxt.py", "to-image", text, image], check=True)
                self.report("--verify-data", image)

    @unittest.skipUnless(REAL_IMAGES.is_dir(), "the real images are not there")
    def test_real_images(self):
        for image in sorted(REAL_IMAGES.glob("*.*")):
            with self.subTest(image=image.name):
                self.report("--verify-data", image)

    @needs_qemu
    def test_images_made_by_qemu(self):
        kinds = {
            "plain": [], "version2": ["-o", "compat=0.10"], "small": ["-o", "cluster_size=512,refcount_bits=8"],
            "extended": ["-o", "extended_l2=on"], "zstd": ["-o", "compression_type=zstd"],
            "lazy": ["-o", "lazy_refcounts=on"], "preallocated": ["-o", "preallocation=metadata"],
            "data": ["-o", f"data_file={self.path}/raw.data,data_file_raw=on"],
            "luks": ["--object", "secret,id=key,data=secret", "-o",
                     "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10"],
        }
        for kind, options in kinds.items():
            with self.subTest(kind=kind):
                image = self.path / f"made-{kind}.qcow2"
                create = ["qemu-img", "create", "-q", "-f", "qcow2", *options, image, "4M"]
                # On a busy machine measuring the key's iterations sometimes fails.
                self.assertTrue(any(subprocess.run(create, stderr=subprocess.DEVNULL).returncode == 0
                                    for _ in range(20)))
                if kind not in ("luks", "data"):
                    commands = ["write 0 1M"] + ([] if kind in ("lazy", "preallocated") else ["write -c 1M 64k"])
                    subprocess.run(["qemu-io", *(a for c in commands for a in ("-c", c)), image], check=True,
                                   stdout=subprocess.DEVNULL)
                    subprocess.run(["qemu-img", "snapshot", "-c", "now", image], check=True)
                report = self.report("--verify-data", image, exit_code=0)
                # qemu-img records the data file by the path it was given.
                said = ["file-name-absolute"] if kind == "data" else []
                self.assertEqual([finding["code"] for finding in report["diagnostics"]], said)

    @needs_qemu
    def test_chain(self):
        base = self.path / "base.qcow2"
        top = self.path / "top.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", base, "1M"], check=True)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", top], check=True)
        self.assertNotIn("chain", self.report(top, exit_code=0))
        chain = self.report("--chain", top, exit_code=0)["chain"]
        self.assertEqual([(layer["filename"], layer["verdict"]) for layer in chain], [(str(base), "clean")])
        for damage, code in ((lambda: base.write_bytes(DAMAGED["refcount-0"][0]), "chain-layer-bad"),
                             (lambda: base.write_bytes(b"raw" * 99), "chain-wrong-format"),
                             (lambda: base.write_bytes(top.read_bytes()), "chain-cycle"),
                             (base.unlink, "chain-missing")):
            damage()
            with self.subTest(code=code):
                report, _ = self.report("--chain", top)
                self.assertIn(code, [d["code"] for d in report["diagnostics"]])


if __name__ == "__main__":
    unittest.main()
