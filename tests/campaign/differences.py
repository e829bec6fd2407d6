"""The classes of disagreement between qcow2check and qemu-img check, each with what it does to the numbers.

compare() takes the two reports of an image and says which classes it needs to get from one to the other. A class is
no excuse for just any number: it says by how much each total differs, from what is in the image and in our findings,
and only if all of it adds up the image is explained. Where qemu-img reads something as a table that ours does not
believe, what it makes of it cannot be told beforehand; there the disputed pointers are taken out of a copy of the
image, and both tools must agree about the rest.
"""

import collections
import dataclasses
import re

import image_words
import reports

OURS_RIGHT = "ours"
THEIRS_RIGHT = "qemu-img's"
POLICY = "policy"

# Every class: its name, as a heading of docs/differences.md, and who is right.
CLASSES = {
    # Where qemu-img gives no numbers.
    "qemu-img-refuses": OURS_RIGHT,
    "qemu-img-gives-up": OURS_RIGHT,
    "qemu-img-needs-a-key": POLICY,
    "qemu-img-opens-other-files": POLICY,
    "qemu-img-crashes-or-hangs": OURS_RIGHT,
    # What qemu-img does not see.
    "corrupt-bit": POLICY,
    "shared-clusters": OURS_RIGHT,
    "refcounts-behind-the-end": OURS_RIGHT,
    "first-cluster-behind-the-end": OURS_RIGHT,
    "zero-flag-in-version-2": OURS_RIGHT,
    "lost-structure": OURS_RIGHT,
    "snapshot-table": OURS_RIGHT,
    "bitmaps": OURS_RIGHT,
    "header-fields": OURS_RIGHT,
    # Where both see the same damage and count it otherwise.
    "compressed-subclusters": OURS_RIGHT,
    "no-table": OURS_RIGHT,
    "misaligned-table-pointer": OURS_RIGHT,
    "header-as-table": OURS_RIGHT,
    "unreadable-refcounts": POLICY,
    "refcount-table-entry": POLICY,
    "one-bit-refcounts": OURS_RIGHT,
    "refcount-table-behind-the-end": POLICY,
    # After a repair.
    "repair-keeps-snapshots": POLICY,
}

UNSEEN = {
    "corrupt-bit": ("corrupt-bit",),
    "shared-clusters": ("cross-linked-data", "cross-linked-l2-table", "data-on-metadata", "metadata-overlap"),
    "zero-flag-in-version-2": ("zero-flag-not-allowed",),
    "lost-structure": ("l1-lost", "torn-l2-table", "orphan-l2-table", "lost-l2-table"),
    "snapshot-table": ("snapshot-table-invalid", "snapshot-size-mismatch", "snapshot-extra-too-large",
                       "snapshot-too-many"),
    "bitmaps": ("bitmap-extension-invalid", "bitmap-directory-invalid", "bitmap-table-invalid"),
    "l1-table": ("l1-offset-invalid",),
    "refcount-table-behind-the-end": ("refcount-table-invalid",),
    "header-fields": ("cluster-bits-suspect", "backing-name-invalid", "backing-name-overlap", "encryption-invalid",
                      "extension-malformed", "luks-header-invalid", "l1-too-small", "data-file-flags-invalid",
                      "extension-overflow"),
}


@dataclasses.dataclass
class Outcome:
    classes: set = dataclasses.field(default_factory=set)
    unexplained: list = dataclasses.field(default_factory=list)


def compare(case):
    """`case` has .ours, .qemu, .words (the image), and .retry(words) for a changed image."""
    outcome = Outcome()
    if case.qemu.exit_code == reports.GIVEN_UP or case.qemu.exit_code >= 128:
        outcome.classes.add("qemu-img-crashes-or-hangs")
    elif not case.qemu.numbers:
        explain_refusal(case, outcome)
    else:
        check_exit_codes(case, outcome)
        if not outcome.unexplained:
            explain_numbers(case, outcome)
    return outcome


# --- Exit codes, and images of which qemu-img says nothing ---


def exit_code_of(numbers):
    if numbers["check-errors"]:
        return 1
    return 2 if numbers["corruptions"] else 3 if numbers["leaks"] else 0


def check_exit_codes(case, outcome):
    """Both exit codes follow from the numbers, so that they need no classes of their own."""
    for name, report in (("ours", case.ours), ("qemu-img", case.qemu)):
        if report.exit_code != exit_code_of(report.numbers):
            outcome.unexplained.append(f"exit code of {name}: {report.exit_code} with {report.numbers}")


# What qemu-img says when it does not open an image or gives up, and what ours finds then: one of these codes.
REFUSALS = [(name, re.compile(pattern), tuple(codes.split())) for name, pattern, codes in (
    ("qemu-img-refuses", r"Image is not in qcow2 format", "not-qcow2 header-lost"),
    ("qemu-img-refuses", r"Unsupported qcow2 version", "unsupported-version not-qcow2"),
    ("qemu-img-refuses", r"Unsupported cluster size", "cluster-bits-invalid cluster-bits-large header-truncated"),
    ("qemu-img-refuses", r"qcow2 header (too short|exceeds cluster size)", "header-length-invalid"),
    ("qemu-img-refuses", r"(Invalid backing file offset|Backing file name too long)", "backing-name-invalid"),
    ("qemu-img-refuses", r"[Cc]ompression type", "compression-type-invalid"),
    ("qemu-img-refuses", r"Unsupported qcow2 feature", "unknown-incompatible-feature"),
    ("qemu-img-refuses", r"Unsupported subcluster size", "extended-l2-small-clusters"),
    ("qemu-img-refuses", r"Reference count entry width too large", "refcount-order-invalid"),
    ("qemu-img-refuses", r"Reference count table (too large|offset invalid)",
     "refcount-table-invalid refcount-table-large"),
    ("qemu-img-refuses", r"Active L1 table offset invalid", "l1-offset-invalid l1-too-small"),
    ("qemu-img-refuses", r"Active L1 table too large", "l1-too-large"),
    ("qemu-img-refuses", r"L1 table is too small", "l1-too-small"),
    ("qemu-img-refuses", r"(Image is too big|Could not refresh total sector count)", "l1-too-small"),
    ("qemu-img-refuses", r"Header extension too large", "extension-overflow"),
    ("qemu-img-refuses", r"ext_backing_format: len=", "extension-malformed"),
    ("qemu-img-refuses", r"data-file-raw requires a data file", "data-file-flags-invalid"),
    ("qemu-img-refuses", r"(bitmaps_ext:|Broken bitmap directory|More bitmaps found|[Bb]itmap)",
     "bitmap-extension-invalid bitmap-directory-invalid bitmap-table-invalid bitmap-duplicate virtual-size-unaligned"),
    ("qemu-img-refuses", r"(encryption|[Cc]rypt|CRYPTO|LUKS)",
     "encryption-invalid luks-header-invalid extension-malformed backing-name-overlap"),
    ("qemu-img-gives-up", r"Check failed: File too large",
     "snapshot-too-many snapshot-extra-too-large snapshot-table-invalid"),
    ("qemu-img-gives-up", r"Check failed: Input/output error", "snapshot-l1-invalid"),
    ("qemu-img-gives-up", r"Check failed: Invalid argument",
     "snapshot-table-invalid bitmap-directory-invalid bitmap-table-invalid"),
)]


# What depends on more than the image: a key, the files that it names.
OTHER_FILES = [("qemu-img-needs-a-key", "is required for cipher"),
               ("qemu-img-opens-other-files", "Could not open backing file"),
               ("qemu-img-opens-other-files", "'data-file' is required for this image")]


def explain_refusal(case, outcome):
    reason = case.qemu.reason
    for name, pattern in OTHER_FILES:
        if pattern in reason:
            outcome.classes.add(name)
            return
    for name, pattern, codes in REFUSALS:
        if not pattern.search(reason):
            continue
        if any(code in case.ours.counts for code in codes) and case.qemu.exit_code == 1:
            outcome.classes.add(name)
            return
    outcome.unexplained.append(f"qemu-img, exit code {case.qemu.exit_code}: {reason}")


# --- Numbers ---


def explain_numbers(case, outcome):
    disputed = case.words.take_out_disputed(case.ours)
    if disputed:
        # A second round takes out what came to light in the first.
        rest = case.retry(disputed.words)
        outcome.classes.update(disputed.classes)
        inner = compare(rest)
        outcome.classes.update(inner.classes)
        outcome.unexplained.extend(f"without {', '.join(sorted(disputed.classes))}: {line}"
                                   for line in inner.unexplained)
        return
    Ledger(case, outcome).settle()


class Ledger:
    """What the classes say about the numbers of one image; all amounts are ours minus qemu-img's."""

    def __init__(self, case, outcome):
        self.ours, self.qemu, self.words = case.ours, case.qemu, case.words
        self.outcome = outcome
        self.kinds = collections.Counter()  # of reports.SEEN_BY_BOTH
        self.references = collections.Counter()  # by cluster
        self.numbers = collections.Counter()  # statistics
        self.not_counted_by_qemu = set()  # places of entries
        self.regions = list(self.qemu.outside)
        self.behind_end = collections.Counter()  # structures that both find behind the end, by our code

    def explain(self, name):
        self.outcome.classes.add(name)

    def settle(self):
        self.check_sums()
        self.compressed_subclusters()
        self.first_cluster_behind_end()
        self.regions_of_structures()
        self.extensions_that_are_cut_off()
        self.blocks_behind_end()
        self.refcount_table_entries()
        self.overflows()
        self.shared_blocks()
        self.unseen()
        self.refcounts()
        self.unreadable_refcounts()
        self.copied_flags_far_behind_end()
        self.kinds_of_lines()
        self.statistics()

    def unexplained(self, text):
        self.outcome.unexplained.append(text)

    def check_sums(self):
        """That the lines and the findings make up the totals, so that explaining these explains those."""
        lines = sum(self.qemu.seen.values()) + self.qemu.too_low
        if lines != self.qemu.numbers["corruptions"] or self.qemu.leaks != self.qemu.numbers["leaks"]:
            self.unexplained(f"qemu-img's lines, {lines} and {self.qemu.leaks}, are not its totals")
        if len(self.qemu.unknown_clusters) != self.qemu.numbers["check-errors"]:
            self.unexplained("qemu-img's check errors are not unreadable refcounts")
        unseen = sum(self.ours.count(*codes) for codes in UNSEEN.values())
        if sum(self.ours.seen.values()) + self.ours.too_low + unseen != self.ours.numbers["corruptions"]:
            self.unexplained(f"our codes {self.ours.counts} do not make up the corruptions")
        leaks = self.ours.leaks + self.ours.count("refcount-past-end")
        if leaks != self.ours.numbers["leaks"] or self.ours.numbers["check-errors"]:
            self.unexplained(f"our codes {self.ours.counts} do not make up leaks and check errors")

    def unseen(self):
        for name, codes in UNSEEN.items():
            if self.ours.count(*codes) != sum(self.behind_end[code] for code in codes):
                self.explain(name if name in CLASSES else "first-cluster-behind-the-end")
        if self.ours.count("refcount-past-end"):
            self.explain("refcounts-behind-the-end")

    def compressed_subclusters(self):
        """A compressed cluster with a subcluster bitmap is none to qemu-img; to read it QEMU ignores the bitmap."""
        findings = self.ours.of("compressed-subclusters")
        for place, offset, size, weight in self.words.regions_of(findings):
            self.explain("compressed-subclusters")
            self.not_counted_by_qemu.add(place)
            if self.words.is_outside(offset, size):
                self.kinds["past the end"] += weight
                continue
            for cluster in self.words.clusters_of(offset, size):
                self.references[cluster] += weight
        for finding in findings:
            if "snapshot" not in finding:
                for key in ("allocated-clusters", "fragmented-clusters", "compressed-clusters"):
                    self.numbers[key] += finding["count"]

    def first_cluster_behind_end(self):
        """To qemu-img a pointer is behind the end only if what it leads to ends a cluster or more behind it."""
        findings = self.ours.of("l2-table-past-end", "data-past-end", "compressed-past-end", "zero-cluster-past-end")
        for place, offset, size, weight in self.words.regions_of(findings):
            if offset + size - self.words.length >= self.words.cluster_size or place in self.not_counted_by_qemu:
                continue
            self.explain("first-cluster-behind-the-end")
            self.kinds["past the end"] += weight
            for cluster in self.words.clusters_of(offset, size):
                self.references[cluster] -= weight

    def blocks_behind_end(self):
        """A block in a cluster behind the end that qemu-img has counted by then is inside the image to it, and a
        region like any other."""
        end = self.counted_end()
        for finding in self.ours.of("refcount-block-past-end"):
            offset = self.words.word(finding["host-offset"]) & ~0x1FF
            if offset // self.words.cluster_size >= end:
                continue
            self.explain("first-cluster-behind-the-end")
            self.kinds["refcount block past the end"] += finding["count"]
            if offset + self.words.cluster_size - self.words.length >= self.words.cluster_size:
                self.kinds["past the end"] -= finding["count"]
            else:
                self.references[offset // self.words.cluster_size] -= 1

    def counted_end(self):
        """The number of clusters that qemu-img takes the file to have."""
        last = max((cluster for cluster, count in self.references.items() if count < 0), default=-1)
        return max(self.words.clusters, last + 1)

    def refcount_table_entries(self):
        """An entry with reserved bits: ours goes on with the offset, to qemu-img there is no block."""
        for offset, entries in self.words.block_offsets()[1].items():
            if offset % self.words.cluster_size == 0 and 0 < offset < self.words.length:
                cluster = offset // self.words.cluster_size
                self.references[cluster] += entries

    def overflows(self):
        """References that qemu-img does not count cannot be too many for the width."""
        for finding in self.ours.of("refcount-overflow"):
            first = finding["host-offset"] // self.words.cluster_size
            for cluster in range(first, first + finding["clusters"]):
                if self.references[cluster] > 0:
                    self.explain("refcount-table-entry")
                    self.kinds["overflow"] += min(self.references[cluster], finding["count"] // finding["clusters"])

    def shared_blocks(self):
        """qemu-img sees that a block is shared by its own count of references, which cannot be above the width's
        maximum, and does not look at blocks of entries with reserved bits."""
        if self.words.refcount_bits == 1:
            shared = self.ours.seen["refcount block shared"]
            if shared:
                self.explain("one-bit-refcounts")
            self.kinds["refcount block shared"] += shared
            return
        plain, reserved = self.words.block_offsets()
        for finding in self.ours.of("refcount-block-shared"):
            first, step = finding["host-offset"], self.words.cluster_size
            for offset in range(first, first + step * finding["clusters"], step):
                entries = plain[offset] + reserved[offset]
                references = self.our_references(offset // step, finding)
                ours = entries if references > entries else entries - 1
                others = references - entries - self.references[offset // step] + reserved[offset]
                theirs = plain[offset] if others > 0 else max(plain[offset] - 1, 0)
                if ours != theirs:
                    self.explain("refcount-table-entry")
                self.kinds["refcount block shared"] += ours - theirs

    def our_references(self, cluster, shared):
        """Of a cluster that a finding about shared blocks is about."""
        if cluster in self.ours.refcounts:
            return self.ours.refcounts[cluster][1]
        return int(re.search(r"referenced (\d+) times", shared["message"])[1])

    def extensions_that_are_cut_off(self):
        """To QEMU the header extensions end where the backing file name begins, even if that is in the header."""
        if self.ours.count("backing-name-overlap"):
            for offset, size in self.words.bitmap_structures():
                self.explain("header-fields")
                for cluster in self.words.clusters_of(offset, size):
                    self.references[cluster] += 1

    def regions_of_structures(self):
        """Structures behind the end, which qemu-img counts as it counts pointers that lead there."""
        cluster_size, length = self.words.cluster_size, self.words.length
        for code, offset, size in self.words.structures():
            if (offset, size) in self.regions:
                self.regions.remove((offset, size))
                self.kinds["past the end"] -= 1
                self.behind_end[code] += 1
                if code == "refcount-table-invalid" and offset < length:
                    # Ours counts the part that is there.
                    self.explain("refcount-table-behind-the-end")
                    for cluster in self.words.clusters_of(offset, length - offset):
                        self.references[cluster] += 1
            elif size and length < offset + size < length + cluster_size:
                self.explain("first-cluster-behind-the-end")
                if offset >= length:
                    for cluster in self.words.clusters_of(offset, size):
                        self.references[cluster] -= 1
        # To ours it is one of the things that can be wrong with a snapshot's L1 table.
        self.kinds["snapshot L1"] += sum(finding["count"] for finding in self.ours.of("snapshot-l1-invalid")
                                         if "(wholly) in the file" in finding["message"])

    def unreadable_refcounts(self):
        """A misaligned refcount block: to qemu-img the refcounts in it are errors of the check, to ours they are 0."""
        unknown = self.qemu.unknown_clusters
        unlooked_at = self.copied_flags_without_refcount()
        if not unknown and not unlooked_at:
            return
        self.explain("unreadable-refcounts")
        if unknown != {cluster for cluster in range(max(unknown, default=-1) + 1)
                       if self.words.refcount_is_unreadable(cluster)}:
            self.unexplained("the unreadable refcounts are not those of the bad refcount blocks")
        self.kinds["COPIED"] += unlooked_at

    def copied_flags_without_refcount(self):
        """How many wrong COPIED flags qemu-img does not look at, for want of the refcount of what they lead to or,
        in an L2 table, of the table itself."""
        count = 0
        for finding in self.ours.of("copied-flag-wrong", "refcount-lazy"):
            if finding["structure"] == "refcount-block":
                continue
            table = finding["host-offset"] // self.words.cluster_size
            table_is_unreadable = finding["structure"] == "l2-table" and self.words.refcount_is_unreadable(table)
            for _, offset, _, weight in self.words.regions_of([finding]):
                if table_is_unreadable or self.words.refcount_is_unreadable(offset // self.words.cluster_size):
                    count += weight
        return count

    def copied_flags_far_behind_end(self):
        """Farther than twice the file and a million clusters ours takes each refcount for 0, whatever a block says."""
        for finding in self.ours.of("l2-table-past-end", "data-past-end", "zero-cluster-past-end"):
            if "snapshot" in finding:
                continue
            for place, offset, _, weight in self.words.regions_of([finding]):
                cluster = offset // self.words.cluster_size
                if cluster < 2 * self.words.clusters + (1 << 20) or self.words.refcount(cluster) != 1:
                    continue
                self.explain("refcounts-behind-the-end")
                self.kinds["COPIED"] += weight if self.words.word(place) & image_words.COPIED else -weight

    def refcounts(self):
        unknown = self.qemu.unknown_clusters
        for cluster in sorted(set(self.ours.refcounts) | set(self.qemu.refcounts)):
            if cluster in unknown:
                continue
            if cluster >= self.words.clusters:
                self.refcount_behind_end(cluster)
                continue
            ours, qemu = self.ours.refcounts.get(cluster), self.qemu.refcounts.get(cluster)
            stored = (ours or qemu)[0]
            if ours and qemu and ours[0] != qemu[0]:
                self.unexplained(f"cluster {cluster}: stored {ours[0]}, qemu-img {qemu[0]}")
            difference = (ours[1] if ours else stored) - (qemu[1] if qemu else stored)
            if difference == 0:
                continue
            if difference != self.references[cluster]:
                self.unexplained(f"cluster {cluster}: stored {stored}, references {ours}, qemu-img {qemu}, "
                                 f"explained {self.references[cluster]}")
            elif self.references[cluster] > 0:
                self.explain("refcount-table-entry")

    def refcount_behind_end(self, cluster):
        """qemu-img compares refcounts up to the last cluster that it has counted, which may be one behind the end.
        Ours has counted the pointer that leads there, and calls all other refcounts there leaks."""
        if cluster not in self.qemu.refcounts:
            return
        references = self.qemu.refcounts[cluster][1]
        if references != self.ours.refcounts.get(cluster, (0, 0))[1] - self.references[cluster]:
            self.unexplained(f"cluster {cluster} behind the end: qemu-img {self.qemu.refcounts[cluster]}")

    def kinds_of_lines(self):
        for name, _, _ in reports.SEEN_BY_BOTH:
            difference = self.ours.seen[name] - self.qemu.seen[name]
            if difference != self.kinds[name]:
                self.unexplained(f"{name}: ours {self.ours.seen[name]}, qemu-img {self.qemu.seen[name]}, "
                                 f"explained {self.kinds[name]}")

    def statistics(self):
        for key in reports.NUMBERS[3:]:
            ours, qemu = self.ours.numbers[key] - self.numbers[key], self.qemu.numbers[key]
            if key == "image-end-offset":
                if self.qemu.unknown_clusters:
                    continue
                ours = self.end_as_qemu_counts(ours)
            if ours != qemu:
                self.unexplained(f"{key}: ours {self.ours.numbers[key]}, qemu-img {qemu}, explained {ours}")

    def end_as_qemu_counts(self, ours):
        size = self.words.cluster_size
        if self.counted_end() > self.words.clusters:
            return max(ours, self.counted_end() * size)
        first_unseen = ours // size
        while self.ours.refcounts.get(first_unseen - 1) == (0, self.references[first_unseen - 1]):
            first_unseen -= 1
            # What nobody uses is not the end either.
            while self.ours.refcounts.get(first_unseen - 1) is None and self.words.refcount(first_unseen - 1) == 0:
                first_unseen -= 1
        return first_unseen * size
