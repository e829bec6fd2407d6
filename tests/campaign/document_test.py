"""docs/differences.md and the table of classes say the same: the same classes, each with the same judgement, and
each pinned by tests that exist."""

import pathlib
import re
import sys
import unittest

import differences

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECTION = re.compile(r"^### ([a-z0-9-]+)\n\n\*\*(.+?)\*\*(.*?)(?=^###? |\Z)", re.MULTILINE | re.DOTALL)
JUDGEMENTS = {"Ours is right.": differences.OURS_RIGHT, "A matter of policy.": differences.POLICY,
              "qemu-img is right.": differences.THEIRS_RIGHT}


class DocumentTest(unittest.TestCase):
    def setUp(self):
        text = (ROOT / "docs" / "differences.md").read_text()
        self.sections = {name: (judgement, body) for name, judgement, body in SECTION.findall(text)}

    def test_classes_and_judgements(self):
        self.assertEqual({name: JUDGEMENTS[judgement] for name, (judgement, _) in self.sections.items()},
                         differences.CLASSES)

    def test_every_class_is_pinned_by_tests_that_exist(self):
        tests = {f"{suite}.{name}" for file in (ROOT / "tests").glob("*_test.cc")
                 for suite, name in re.findall(r"^TEST_?[FP]?\((\w+), (\w+)\)", file.read_text(), re.MULTILINE)}
        for name, (_, body) in self.sections.items():
            pinned = re.findall(r"`(\w+\.\w+)`", body.partition("Pinned by")[2])
            self.assertTrue(pinned, name)
            self.assertLessEqual(set(pinned), tests, name)


if __name__ == "__main__":
    sys.exit(unittest.main())
