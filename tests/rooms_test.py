"""The rooms (folders) depend one way, cli -> repair -> checker -> common, and each thing is done in one place.

Reads the sources and the CMake files; builds nothing.
"""

import os
import pathlib
import re
import unittest

ROOT = pathlib.Path(os.environ["QCOW2CHECK_SOURCE_DIR"])

# What a file of each room may include from.
ROOMS = {
    "common": {"common"},
    "checker": {"checker", "common"},
    "repair": {"repair", "checker", "common"},
    "cli": {"cli", "repair", "checker", "common"},
    "fuzz": {"fuzz", "tests", "cli", "repair", "checker", "common"},
    "tests": {"tests", "fuzz", "cli", "repair", "checker", "common"},
}
PRODUCT = ("common", "checker", "repair", "cli")
INCLUDE = re.compile(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', re.MULTILINE)

# Libraries that only some files may see: how their headers begin -> which files, by the start of the path.
LIBRARIES = {
    "nlohmann/": ("cli/", "tests/", "fuzz/"),
    "CLI/": ("cli/", "tests/benchmarks/"),
    "libnbd.h": ("common/nbd_",),
    "xxhash.h": ("common/digest.cc",),
    "zlib.h": ("checker/decompress.cc", "tests/"),
    "zstd.h": ("checker/decompress.cc", "tests/"),
    "gtest/": ("tests/",),
    "gmock/": ("tests/",),
    "benchmark/": ("tests/benchmarks/",),
}

# What only some files of the product may do: the words that do it -> which files.
DEEDS = {
    # Images are written in one file, undo files in another; the files that are written are types of common/.
    r"[.>](WriteAt|Resize|Discard)\(": {"repair/apply.cc", "repair/undo_log.cc"},
    r"\b(pwritev?2?|ftruncate|fallocate|O_RDWR|O_WRONLY|O_CREAT)\b": {"common/writable_posix_file.cc"},
    r"\baio_(pwrite|trim|zero)\b": {"common/nbd_connection.cc", "common/nbd_library.h"},
    r"\b(unlink|rename|link)\(": {"repair/undo_file.cc"},
    r"\b(popen|system|fork|execv\w*|posix_spawn\w*)\(": set(),
    r"\bthrow\b": set(),
}


def sources(*rooms):
    """(path from ROOT, text) of every source in the rooms and their folders."""
    for room in rooms:
        for path in sorted((ROOT / room).rglob("*")):
            if path.suffix in (".cc", ".h", ".inc"):
                yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def without_comments(text):
    """The code alone, without strings: what a comment or a message says is no deed."""
    return re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', "", text, flags=re.DOTALL)


class RoomsTest(unittest.TestCase):
    def test_includes_go_one_way(self):
        for path, text in sources(*ROOMS):
            for included in INCLUDE.findall(text):
                room = included.split("/")[0]
                if room in ROOMS:
                    self.assertIn(room, ROOMS[path.split("/")[0]], f"{path} includes {included}")

    def test_our_own_headers_are_included_by_their_whole_path(self):
        for path, text in sources(*ROOMS):
            for included in re.findall(r'^#include "([^"]+)"', text, re.MULTILINE):
                if included.split("/")[0] in ROOMS:
                    self.assertTrue((ROOT / included).is_file(), f"{path} includes {included}")
                self.assertIn("/", included, f"{path} includes {included}")

    def test_targets_link_one_way(self):
        for room in PRODUCT:
            text = (ROOT / room / "CMakeLists.txt").read_text(encoding="utf-8")
            declared = re.search(r"qcow2check_room\((\w+)([^)]*)\)", text)
            self.assertEqual(declared.group(1), room)
            linked = set(re.findall(r"qcow2check_(\w+)", declared.group(2)))
            self.assertLessEqual(linked, ROOMS[room] - {room}, room)
            # No other line links anything to the library of a room.
            others = re.findall(r"target_link_libraries\((\w+)", text)
            self.assertNotIn(f"qcow2check_{room}", others)

    def test_libraries_are_seen_where_they_belong(self):
        for path, text in sources(*ROOMS):
            for included in INCLUDE.findall(text):
                for start, places in LIBRARIES.items():
                    if included.startswith(start):
                        self.assertTrue(path.startswith(places), f"{path} includes {included}")

    def test_each_thing_is_done_in_one_place(self):
        for path, text in sources(*PRODUCT):
            code = without_comments(text)
            for deed, places in DEEDS.items():
                found = re.search(deed, code)
                self.assertTrue(found is None or path in places, f"{path}: {found and found.group()}")

    def test_the_checker_knows_no_writable_file(self):
        for path, text in sources("checker"):
            self.assertNotIn("Writable", without_comments(text), path)

    def test_files_are_short(self):
        for path, text in sources(*PRODUCT):
            self.assertLessEqual(text.count("\n"), 500, path)

    def test_headers_are_guarded_by_their_path(self):
        for path, text in sources(*ROOMS):
            if path.endswith(".h"):
                guard = f"QCOW2CHECK_{re.sub('[^A-Z0-9]', '_', path.upper())}_"
                self.assertIn(f"#ifndef {guard}\n#define {guard}\n", text, path)


if __name__ == "__main__":
    unittest.main()
