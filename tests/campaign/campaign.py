"""campaign.py --programs=BUILD_DIR [--images=N] [--seed=N] [--keep=DIR]: runs qemu-img check and qcow2check on randomly
built and damaged images and explains every difference by a class of differences.py (docs/differences.md).

Prints a table of the classes; exit code 1 if an image was left over that no class explains. Such images are kept in
DIR, each with a text that says what differs. Exit code 77: no qemu-img.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import differences
import repairs
import reports
from image_words import ImageWords

DAMAGED_PER_SEED = 8
SEEDS_AT_ONCE = 5
REPAIRED_ONE_IN = 8


@dataclasses.dataclass
class Case:
    programs: pathlib.Path
    image: pathlib.Path
    data_file: pathlib.Path | None

    def __post_init__(self):
        self.words = ImageWords(self.image.read_bytes())
        self.ours = reports.ask_ours(self.programs / "qcow2check", self.image)
        self.qemu = reports.ask_qemu(self.image, self.data_file)

    def retry(self, words):
        """The same for a changed image."""
        changed = self.image.with_suffix(".changed")
        changed.write_bytes(words.data)
        return Case(self.programs, changed, self.data_file)

    def differs(self):
        return self.ours.exit_code != self.qemu.exit_code or self.ours.numbers != self.qemu.numbers


@dataclasses.dataclass
class Result:
    made: dict  # the line of make_images
    differs: bool
    outcome: differences.Outcome
    repairs: tuple | None = None  # exit codes of qemu-img check after our repair and after its own


def try_seeds(programs, first, count, keep):
    results = []
    with tempfile.TemporaryDirectory() as folder:
        made = subprocess.run([programs / "tests/campaign/make_images", folder, str(first), str(count),
                               str(DAMAGED_PER_SEED)], capture_output=True, text=True, check=True)
        for line in made.stdout.splitlines():
            results.append(try_image(programs, pathlib.Path(folder), json.loads(line), keep))
    return results


def try_image(programs, folder, one, keep):
    image = folder / one["file"]
    data_file = folder / one["data-file"] if one["data-file"] else None
    try:
        case = Case(programs, image, data_file)
    except (ValueError, subprocess.TimeoutExpired) as error:
        if keep:
            keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, keep)
        return Result(one, True, differences.Outcome(unexplained=[f"no answer of qcow2check: {error}"]))
    outcome = differences.compare(case) if case.differs() else differences.Outcome()
    result = Result(one, case.differs(), outcome)
    seed, index = image.stem.split("-")
    if index != "0" and (int(seed) + int(index)) % REPAIRED_ONE_IN == 0 and not data_file and not one["encrypted"]:
        *result.repairs, repair_outcome = repairs.try_both(case, folder / f"{seed}-0.qcow2",
                                                           lambda path: Case(programs, path, None))
        outcome.unexplained += repair_outcome.unexplained
        outcome.classes |= repair_outcome.classes & {"repair-keeps-snapshots"}
    if outcome.unexplained and keep:
        keep_image(keep, one, case, outcome)
    return result


def describe(one, case, outcome):
    return "\n".join([one["image"], one["damage"], *outcome.unexplained, f"classes: {sorted(outcome.classes)}",
                      f"ours: exit code {case.ours.exit_code}, {case.ours.numbers}, {case.ours.counts}",
                      f"qemu-img: exit code {case.qemu.exit_code}, {case.qemu.numbers}, {dict(case.qemu.seen)}, "
                      f"too low {case.qemu.too_low}, {case.qemu.reason}"]) + "\n"


def keep_image(keep, one, case, outcome):
    keep.mkdir(parents=True, exist_ok=True)
    shutil.copy(case.image, keep)
    if case.data_file:
        shutil.copy(case.data_file, keep)
    (keep / one["file"]).with_suffix(".txt").write_text(describe(one, case, outcome))


def run(programs, images, seed, keep):
    """All results, in the order of the seeds. Now and then a worker only waits for qemu-img to be timed out."""
    seeds = -(-images // (DAMAGED_PER_SEED + 1))
    starts = range(seed, seed + seeds, SEEDS_AT_ONCE)
    with concurrent.futures.ThreadPoolExecutor(2 * os.cpu_count()) as pool:
        parts = pool.map(lambda start: try_seeds(programs, start, min(SEEDS_AT_ONCE, seed + seeds - start), keep),
                         starts)
        return [result for part in parts for result in part]


def table(results):
    counts = collections.Counter(name for result in results for name in result.outcome.classes)
    lines = ["| class | images | right |", "|---|---:|---|"]
    lines += [f"| {name} | {counts[name]} | {right} |" for name, right in differences.CLASSES.items()]
    return "\n".join(lines)


def summary(results):
    left_over = sum(bool(result.outcome.unexplained) for result in results)
    differing = sum(result.differs for result in results)
    repaired = [result.repairs for result in results if result.repairs]
    states = {0: "clean", 3: "leaks", 2: "corruption", 1: "no result", None: "hangs or crashes"}
    lines = [f"{len(results)} images: all numbers and the exit code are equal for {len(results) - differing} and "
             f"differ for {differing}; {left_over} are not explained.",
             "", f"{len(repaired)} were repaired by both. qemu-img check says afterwards:", "",
             "| | " + " | ".join(states.values()) + " |", "|---|" + "---:|" * len(states)]
    for who, index in (("qcow2check --repair", 0), ("qemu-img check -r all", 1)):
        codes = collections.Counter(repair[index] if repair[index] in states else None for repair in repaired)
        lines.append(f"| {who} | " + " | ".join(str(codes[code]) for code in states) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--programs", type=pathlib.Path, required=True)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=pathlib.Path)
    arguments = parser.parse_args()
    if not shutil.which("qemu-img"):
        print("skipped: qemu-img not found")
        return 77
    results = run(arguments.programs, arguments.images, arguments.seed, arguments.keep)
    print(table(results), summary(results), sep="\n\n")
    left_over = [result for result in results if result.outcome.unexplained]
    for result in left_over[:20]:
        one = result.made
        print(f"\n{one['file']} ({one['image']}; {one['damage']})", *result.outcome.unexplained[:8], sep="\n  ")
    return 1 if left_over else 0


if __name__ == "__main__":
    sys.exit(main())
