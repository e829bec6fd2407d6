"""What qemu-img check and qcow2check say about one image, in a form that can be compared.

qemu-img lists what it finds only as text; each line is one corruption or leak, so lines of a kind are counted and
the clusters and regions that they name are kept.
"""

import collections
import dataclasses
import json
import pathlib
import re
import subprocess

NUMBERS = ("check-errors", "corruptions", "leaks", "image-end-offset", "total-clusters", "allocated-clusters",
           "fragmented-clusters", "compressed-clusters")
TIMEOUT_SECONDS = 20
GIVEN_UP = 124  # of timeout(1)

# What both see: a name, our codes, and what qemu-img's line for it looks like.
SEEN_BY_BOTH = [(name, tuple(codes.split()), re.compile(pattern)) for name, codes, pattern in (
    ("L1 reserved bits", "l1-entry-reserved-bits", r"found L1 entry with reserved bits"),
    ("L2 reserved bits", "l2-entry-reserved-bits", r"found l2 entry with reserved bits"),
    ("L2 table misaligned", "l2-table-misaligned", r"Table is not cluster aligned; L1 entry corrupted"),
    ("data misaligned", "data-misaligned", r"Data cluster is not properly aligned"),
    ("zero cluster misaligned", "zero-cluster-misaligned", r"Preallocated cluster is not properly aligned"),
    ("past the end", "l2-table-past-end data-past-end compressed-past-end zero-cluster-past-end",
     r"counting reference for region exceeding the end"),
    ("compressed and COPIED", "compressed-copied", r"copied flag must never be set"),
    ("compressed subclusters", "compressed-subclusters", r"non-zero subcluster allocation bitmap, entry"),
    ("compressed in data file", "compressed-in-data-file", r"compressed cluster .* with data file"),
    ("subcluster conflict", "subcluster-conflict", r"Allocated cluster has corrupted subcluster"),
    ("subcluster without cluster", "subcluster-without-cluster", r"Unallocated cluster has non-zero subcluster"),
    ("overflow", "refcount-overflow", r"overflow cluster offset"),
    ("snapshots and data file", "data-file-snapshots", r"snapshots in image with data file"),
    ("snapshot incomplete", "snapshot-entry-incomplete", r"snapshot table entry .* is incomplete"),
    ("snapshot L1", "snapshot-l1-invalid", r"l1_(offset|size)=.*snapshot table entry corrupted"),
    ("refcount table reserved bits", "refcount-table-entry-reserved-bits", r"refcount table entry .* reserved bits"),
    ("refcount block misaligned", "refcount-block-misaligned", r"refcount block .* is not cluster aligned"),
    ("refcount block past the end", "refcount-block-past-end", r"refcount block .* is outside image"),
    ("refcount block shared", "refcount-block-shared", r"refcount block \d+ refcount="),
    ("COPIED", "copied-flag-wrong", r"OFLAG_COPIED"),
)]
TOO_LOW = ("refcount-too-low", "refcount-zero-in-use")
TOO_HIGH = ("leaked-cluster", "leak-suspicious", "refcount-too-high")

CLUSTER = re.compile(r"^(ERROR|Leaked|Repairing) cluster (\d+) refcount=(\d+) reference=(\d+)")
NO_REFCOUNT = re.compile(r"^Can't get refcount for cluster (\d+)")
REGION = re.compile(r"end of the file by one cluster or more: offset 0x([0-9a-f]+) size 0x([0-9a-f]+)")


@dataclasses.dataclass
class Report:
    exit_code: int
    numbers: dict  # of NUMBERS; empty if qemu-img printed no JSON
    seen: collections.Counter  # how often each kind of SEEN_BY_BOTH
    refcounts: dict  # wrong ones: cluster -> (stored, references)
    too_low: int = 0
    leaks: int = 0
    unknown_clusters: set = dataclasses.field(default_factory=set)  # whose refcount qemu-img cannot read
    outside: list = dataclasses.field(default_factory=list)  # regions behind the end: (offset, size)
    reason: str = ""  # qemu-img's last line if it gave up
    counts: dict = dataclasses.field(default_factory=dict)  # ours: code -> what it adds to its total
    findings: list = dataclasses.field(default_factory=list)  # ours

    def of(self, *codes):
        return [finding for finding in self.findings if finding["code"] in codes]

    def count(self, *codes):
        return sum(self.counts.get(code, 0) for code in codes)


def arguments_for(image, data_file):
    if data_file is None:
        return ["-f", "qcow2", str(image)]
    return ["--image-opts", f"driver=qcow2,file.driver=file,file.filename={image},"
            f"data-file.driver=file,data-file.filename={data_file}"]


def ask_qemu(image, data_file=None):
    """It may print gigabytes; more than some of it tells nothing new, but then the numbers do not add up."""
    command = ('{ timeout ' + str(TIMEOUT_SECONDS) + ' qemu-img check --output=json "$@" 2>&1 >&3 '
               '| (head -c 16000000; cat >/dev/null) >&2; exit ${PIPESTATUS[0]}; } 3>&1')
    result = subprocess.run(["bash", "-c", command, "qemu-img", *arguments_for(image, data_file)],
                            capture_output=True, stdin=subprocess.DEVNULL)
    # The only warning that ends without a new line.
    lines = re.sub(r"(on the image file to fix\.)(?=\S)", r"\1\n", result.stderr.decode(errors="replace")).splitlines()
    report = Report(result.returncode, {}, collections.Counter(), {})
    try:
        answer = json.loads(result.stdout)
        report.numbers = {key: answer.get(key, 0) for key in NUMBERS}  # what is 0 is left out
    except ValueError:
        said = [line for line in lines if line.startswith("qemu-img: ") and "warning: " not in line]
        report.reason = said[-1] if said else " ".join(lines[-1:])
    for line in lines:
        read_line(line, report)
    # Damage can take the bit that asks for it.
    if data_file and "'data-file' can only be set" in report.reason:
        return ask_qemu(image)
    return report


def read_line(line, report):
    if match := CLUSTER.match(line):
        report.refcounts[int(match[2])] = (int(match[3]), int(match[4]))
        if match[1] == "Leaked":
            report.leaks += 1
        else:
            report.too_low += 1
        return
    if match := NO_REFCOUNT.match(line):
        report.unknown_clusters.add(int(match[1]))
        return
    if match := REGION.search(line):
        report.outside.append((int(match[1], 16), int(match[2], 16)))
    for name, _, pattern in SEEN_BY_BOTH:
        if pattern.search(line):
            report.seen[name] += 1
            return


def ask_ours(program, image):
    result = subprocess.run([program, "--json", "--max-findings=100000", str(image)],
                            capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    answer = json.loads(result.stdout)
    report = Report(result.returncode, {key: answer[key] for key in NUMBERS}, collections.Counter(), {})
    report.findings = answer["diagnostics"]
    report.counts = {total["code"]: total["count"] for total in answer["diagnostic-totals"]}
    lazy_copied = lazy_low = 0
    cluster_size = 1 << int.from_bytes(read(image, 20, 4), "big") if report.findings else 1
    for finding in report.findings:
        if finding["code"] == "refcount-lazy" and finding["structure"] != "refcount-block":
            lazy_copied += finding["count"]
            continue
        if finding["code"] not in TOO_LOW + TOO_HIGH + ("refcount-lazy",):
            continue
        if finding["code"] == "refcount-lazy":
            lazy_low += finding["count"]
        first = finding["host-offset"] // cluster_size
        for cluster in range(first, first + finding["clusters"]):
            report.refcounts[cluster] = (finding.get("stored", 0), finding.get("expected", 0))
    for name, codes, _ in SEEN_BY_BOTH:
        report.seen[name] = report.count(*codes)
    report.seen["COPIED"] += lazy_copied
    report.too_low = report.count(*TOO_LOW) + lazy_low
    report.leaks = report.count(*TOO_HIGH)
    return report


def read(image, offset, length):
    with pathlib.Path(image).open("rb") as file:
        file.seek(offset)
        return file.read(length)
