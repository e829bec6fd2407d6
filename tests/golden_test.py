"""Every image of corpora/golden/ beside the report of its check and plan, and of its repair, that lie beside it.

The repair is run twice: the second finds nothing to do. Then it is taken back, byte for byte. To write the expected
reports anew, to be read before they are committed: QCOW2CHECK_WRITE_GOLDEN=1.
"""

import json
import os
import pathlib
import subprocess
import tempfile
import unittest

SOURCE_DIR = pathlib.Path(os.environ["QCOW2CHECK_SOURCE_DIR"])
GOLDEN = SOURCE_DIR / "corpora" / "golden"
PROGRAM = os.environ["QCOW2CHECK_PROGRAM"]
WRITE = os.environ.get("QCOW2CHECK_WRITE_GOLDEN")


def run(*arguments):
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=60)


def report_of(result):
    """The report without what depends on where and by what it was made."""
    report = json.loads(result.stdout)
    del report["filename"], report["version"]
    del report["coverage"]["reads"], report["coverage"]["bytes-read"]
    report["repair"].pop("undo-file", None)
    return {"exit-code": result.returncode, **report}


class GoldenTest(unittest.TestCase):
    maxDiff = None

    def expect(self, path, report):
        if WRITE:
            path.write_text(json.dumps(report, indent=1) + "\n")
        self.assertEqual(report, json.loads(path.read_text()))

    def try_case(self, text):
        with tempfile.TemporaryDirectory() as folder:
            image = pathlib.Path(folder) / "image.qcow2"
            subprocess.run([SOURCE_DIR / "corpora" / "qtxt.py", "to-image", text, image], check=True)
            damaged = image.read_bytes()
            self.expect(text.with_suffix(".plan.json"), report_of(run("--json", "--repair", "--dry-run", str(image))))
            self.assertEqual(image.read_bytes(), damaged)

            first = report_of(run("--json", "--repair", str(image)))
            self.expect(text.with_suffix(".repair.json"), first)
            repaired = image.read_bytes()
            second = report_of(run("--json", "--repair", str(image)))
            self.assertEqual(second["repair"]["writes"], [])
            self.assertEqual(second["exit-code"], first["exit-code"])
            self.assertEqual(image.read_bytes(), repaired)

            undo = run("undo", f"{image}.undo", str(image))
            self.assertEqual(undo.returncode, 0, undo.stderr)
            self.assertEqual(image.read_bytes(), damaged)

    def test_every_case(self):
        cases = sorted(GOLDEN.glob("*.qtxt"))
        self.assertGreater(len(cases), 10)
        for text in cases:
            with self.subTest(text.stem):
                self.try_case(text)


if __name__ == "__main__":
    unittest.main()
