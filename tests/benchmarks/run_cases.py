#!/usr/bin/env python3
"""Measures qemu-img check, qcow2check and the floor program on the images of benchmark_cases.py.

Builds each image, sees that both programs say of it what is expected, runs the programs in turn and prints a Markdown
table of medians. Exit code 1 if a program said something else; 77 if there is no qemu-img. Called by scripts/bench.
"""

import argparse
import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from benchmark_cases import CASES, IMAGES

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- begin of what scripts/bench --update-docs writes -->", "<!-- end -->"
RUN_TIMEOUT_SECONDS = 900
# A program whose run takes longer is run less often, until it has had about as long as the second number.
LONG_RUN_SECONDS, ENOUGH_SECONDS = 5, 20
ADDRESS_OF_SOCKET = "nbd+unix:///?socket={}"


class CaseError(Exception):
    """Why a case cannot be measured."""


class NotMeasured(CaseError):
    """It cannot be measured here, and nothing is wrong."""


@dataclasses.dataclass
class Run:
    exit_code: int
    seconds: float
    peak_memory_bytes: int
    bytes_read: int
    reads: int
    output: str = ""


class Bench:
    def __init__(self, options, folder):
        self.small, self.rounds, self.folder = options.small, options.rounds, folder
        self.programs = pathlib.Path(options.programs).resolve()
        self.qcow2check = str(self.programs / "qcow2check")
        self.has_threads = "--threads" in subprocess.run(
            [self.qcow2check, "--help"], capture_output=True, text=True, check=True).stdout
        self.images = {}

    def helper(self, name):
        return str(self.programs / "tests" / "benchmarks" / name)

    # --- Images ---

    def folder_for(self, size_bytes):
        """The scratch folder, or one in memory if files there cannot be that long."""
        with tempfile.TemporaryFile(dir=self.folder) as file:
            try:
                file.truncate(size_bytes)
                return self.folder
            except OSError as error:
                if error.errno != errno.EFBIG or not os.access("/dev/shm", os.W_OK):
                    raise NotMeasured(f"the file system cannot hold it: {error.strerror}")
        return self.in_memory

    def image(self, name):
        """The path of the image, which is built when it is first asked for."""
        if name in self.images:
            return self.images[name]
        recipe = IMAGES[name].small if self.small else IMAGES[name].full
        path = str(self.folder_for(recipe.file_bytes) / f"{name}.qcow2")
        if not os.path.exists(path):
            note(f"building {name}")
            source = self.image(recipe.source) if recipe.source else None
            if source:
                copy_sparse(source, path)
            for command in recipe.commands:
                subprocess.run([self.helper("make_case") if word == "make_case" else word.replace("OUT", path)
                                for word in command], check=True, stdout=subprocess.DEVNULL)
            if recipe.then:
                recipe.then(path)
        self.images[name] = path
        return path

    def drop_images_not_in(self, names):
        for name in set(self.images) - set(names):
            os.unlink(self.images.pop(name))

    # --- Runs ---

    def measure(self, command, output=subprocess.DEVNULL):
        result = self.folder / "measured.json"
        process = subprocess.Popen([self.helper("measure"), str(result), *command], stdin=subprocess.DEVNULL,
                                   stdout=output, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            if process.wait(RUN_TIMEOUT_SECONDS) != 0:
                raise CaseError(f"cannot run {command[0]}")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise CaseError(f"{os.path.basename(command[0])}: given up after {RUN_TIMEOUT_SECONDS} s")
        return Run(**json.loads(result.read_text()))

    def measure_json(self, command):
        with tempfile.TemporaryFile("w+", dir=self.folder) as output:
            run = self.measure(command, output)
            output.seek(0)
            run.output = output.read()
        return run

    def commands(self, case):
        qemu, ours = ["qemu-img", "check"], [self.qcow2check]
        if case.repair:
            qemu += ["-r", case.repair]
            ours += [f"--repair={case.repair}"]
        commands = {"qemu": qemu, "ours": ours}
        if self.has_threads:
            commands["ours1"] = [*ours, "--threads=1"]
        if not case.repair and not case.nbd_delay:
            commands["floor"] = [self.helper("floor")]
        return commands

    @contextlib.contextmanager
    def target(self, case, path):
        """What a run is given: the image, a fresh copy of it to repair, or its address; in the state it should be in."""
        if case.repair:
            copy = f"{path}.copy"
            copy_sparse(path, copy)
            try:
                yield copy
            finally:
                for leftover in (copy, f"{copy}.undo"):
                    pathlib.Path(leftover).unlink(missing_ok=True)
        else:
            if case.cold:
                drop_from_cache(path)
            yield path

    @contextlib.contextmanager
    def served(self, case, path):
        """The address of the image, which nbdkit serves, if the case is a remote one; its path otherwise."""
        if not case.nbd_delay:
            yield path
            return
        if not shutil.which("nbdkit"):
            raise NotMeasured("nbdkit is not installed")
        socket = self.folder / "nbd.socket"
        server = subprocess.Popen(["nbdkit", "--foreground", "--exit-with-parent", "-U", str(socket), "--readonly",
                                   "--filter=delay", "file", path, f"rdelay={case.nbd_delay}"])
        try:
            while not socket.exists():
                if server.poll() is not None:
                    raise CaseError("nbdkit does not start")
                time.sleep(0.01)
            yield ADDRESS_OF_SOCKET.format(socket)
        finally:
            server.terminate()
            server.wait()
            socket.unlink(missing_ok=True)

    # --- Cases ---

    def verify(self, case, path, commands):
        """Both programs say what is expected. Returns qemu-img's run, and a remark if ours is not to be measured.

        Leaves the image in the page cache.
        """
        with self.target(case, path) as target:
            qemu = self.measure_json([*commands["qemu"], "--output=json", target])
        with self.target(case, path) as target:
            ours = self.measure_json([*commands["ours"], "--json", target])
            if case.repair and ours.exit_code == 0:
                left = self.measure(["qemu-img", "check", target])
                if left.exit_code != 0:
                    raise CaseError(f"after qcow2check's repair qemu-img check exits with {left.exit_code}")
        if case.nbd_delay and ours.exit_code == 1 and case.exit_codes[1] != 1:
            del commands["ours"]
            commands.pop("ours1", None)
            return qemu, "not supported by this program"
        if (qemu.exit_code, ours.exit_code) != case.exit_codes:
            raise CaseError(f"exit codes {qemu.exit_code} of qemu-img and {ours.exit_code} of qcow2check, expected "
                            f"{case.exit_codes[0]} and {case.exit_codes[1]}")
        if not case.repair and qemu.exit_code == ours.exit_code:
            reports = json.loads(qemu.output), json.loads(ours.output)
            for key in ("corruptions", "leaks", "image-end-offset", "total-clusters", "allocated-clusters",
                        "fragmented-clusters"):
                theirs, our_number = (report.get(key, 0) for report in reports)
                if theirs != our_number:
                    raise CaseError(f"{key}: {theirs} says qemu-img, {our_number} qcow2check")
        return qemu, ""

    def run_case(self, case):
        """The runs by program, and a remark."""
        path = self.image(case.image)
        if case.cold and file_system_of(path) == "tmpfs":
            raise NotMeasured("the image lies in memory")
        note(f"measuring {case.name}")
        commands = self.commands(case)
        runs = {program: [] for program in commands}
        with self.served(case, path) as address:
            qemu, remark = self.verify(case, address, commands)
            rounds = {program: self.rounds for program in commands}
            if qemu.seconds > LONG_RUN_SECONDS:
                rounds["qemu"] = min(self.rounds, max(1, int(ENOUGH_SECONDS / qemu.seconds)))
            for current in range(self.rounds):
                for program, command in commands.items():
                    if current < rounds[program]:
                        with self.target(case, address) as target:
                            runs[program].append(self.measure([*command, target]))
        return runs, remark


def note(text):
    print(text, file=sys.stderr, flush=True)


def copy_sparse(source, copy):
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", source, copy], check=True)
    with open(copy, "rb+") as file:
        os.fsync(file.fileno())


def drop_from_cache(path):
    with open(path, "rb+") as file:
        os.fsync(file.fileno())  # only clean pages go
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def first_line(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def file_system_of(path):
    return first_line("findmnt", "--noheadings", "--output=FSTYPE", "--target", str(path))


# --- The table ---

HEADINGS = ("case", "qemu-img, s", "qcow2check, s", "with 1 thread, s", "floor, s", "qemu-img / qcow2check",
            "qcow2check / floor", "peak memory, MB: qemu-img", "qcow2check", "read, MB (calls): qemu-img", "qcow2check")


def median(runs, field):
    return statistics.median(getattr(run, field) for run in runs)


def row(case, runs, remark):
    def time_of(program):
        if not runs.get(program):
            return "-"
        text = f"{median(runs[program], 'seconds'):.3f}"
        return text if len(runs[program]) == most_rounds else f"{text} ({len(runs[program])} x)"

    def ratio(a, b):
        if not runs.get(a) or not runs.get(b):
            return "-"
        value = median(runs[a], "seconds") / median(runs[b], "seconds")
        return f"{value:,.0f}" if value >= 20 else f"{value:.1f}"

    def memory(program):
        return f"{median(runs[program], 'peak_memory_bytes') / 1e6:,.1f}" if runs.get(program) else "-"

    def read(program):
        if not runs.get(program) or case.nbd_delay:
            return "-"
        return f"{median(runs[program], 'bytes_read') / 1e6:,.1f} ({median(runs[program], 'reads'):,.0f})"

    most_rounds = max(len(of_program) for of_program in runs.values())
    ours = [time_of("ours") if not remark else remark, time_of("ours1"), time_of("floor"), ratio("qemu", "ours"),
            ratio("ours", "floor")]
    return [case.name, time_of("qemu"), *ours, memory("qemu"), memory("ours"), read("qemu"), read("ours")]


def markdown(rows):
    table = [HEADINGS, ["---"] + ["---:"] * (len(HEADINGS) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in table)


def machine(bench):
    cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
               platform.machine())
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    ours = first_line(bench.qcow2check, "--version")
    commit = subprocess.run(["git", "-C", str(DOCS.parent), "describe", "--always", "--dirty"], capture_output=True,
                            text=True).stdout.strip()
    return (f"{time.strftime('%Y-%m-%d')}: {cpu}, {len(os.sched_getaffinity(0))} cores, {memory_gib:.0f} GiB of memory, "
            f"Linux {platform.release()}, images on {file_system_of(bench.folder)}; "
            f"{first_line('qemu-img', '--version')}; {ours} ({commit or 'no git'}); medians of "
            f"{bench.rounds} rounds.")


def measure_cases(bench, names):
    """The rows of the table, and whether all went as expected."""
    rows, fine = [], True
    cases = [case for case in CASES if not names or case.name in names]
    for index, case in enumerate(cases):
        try:
            rows.append(row(case, *bench.run_case(case)))
        except CaseError as error:
            note(f"{case.name}: {error}")
            rows.append([case.name, str(error), *["-"] * (len(HEADINGS) - 2)])
            fine = fine and isinstance(error, NotMeasured)
        wanted = {later.image for later in cases[index + 1:]}
        bench.drop_images_not_in(wanted | {IMAGES[name].full.source for name in wanted})
    return rows, fine


def main():
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.split("\n\n")[0])
    parser.add_argument("--programs", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--list", action="store_true", help="list the cases")
    parser.add_argument("--case", action="append", choices=names, metavar="NAME", help="only this one; may be repeated")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="how often each program is run (5)")
    parser.add_argument("--dir", metavar="PATH", help="where the images go (default: a temporary folder)")
    parser.add_argument("--small", action="store_true", help="tiny images: tries this script, measures nothing")
    parser.add_argument("--update-docs", action="store_true", help="write the result into docs/benchmarks.md")
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{case.name:20}{case.about}" for case in CASES))
        return 0
    if not shutil.which("qemu-img"):
        note("qemu-img is not installed")
        return 77
    with contextlib.ExitStack() as folders:
        folder = folders.enter_context(tempfile.TemporaryDirectory(prefix="qcow2check-bench-", dir=options.dir))
        bench = Bench(options, pathlib.Path(folder))
        if os.access("/dev/shm", os.W_OK):
            bench.in_memory = pathlib.Path(folders.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        rows, fine = measure_cases(bench, options.case)
        block = f"{machine(bench)}\n\n{markdown(rows)}"
    print(block)
    if options.update_docs:
        before, rest = DOCS.read_text().split(BEGIN)
        DOCS.write_text(f"{before}{BEGIN}\n{block}\n{END}{rest.split(END, 1)[1]}")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
