#!/usr/bin/env python3
"""Prints what llvm-cov export -summary-only says on standard input as a table: coverage_table.py SOURCE_DIRECTORY

One row for each file, and one for each folder, with the share of lines and branches that were reached.
"""

import collections
import json
import os
import sys


def share(covered, count):
    return f"{100 * covered / count:6.1f}%" if count else "      -"


def main():
    root = sys.argv[1]
    rooms = collections.defaultdict(lambda: [0, 0, 0, 0])
    rows = []
    for file in json.load(sys.stdin)["data"][0]["files"]:
        name = os.path.relpath(file["filename"], root)
        lines, branches = file["summary"]["lines"], file["summary"]["branches"]
        numbers = [lines["covered"], lines["count"], branches["covered"], branches["count"]]
        rows.append((name, numbers))
        room = rooms[os.path.dirname(name) + "/"]
        for i, number in enumerate(numbers):
            room[i] += number
    print(f"{'':40}   lines  branches")
    for name, numbers in sorted(rows) + sorted(rooms.items()):
        print(f"{name:40} {share(*numbers[:2])}   {share(*numbers[2:])}")


if __name__ == "__main__":
    main()
