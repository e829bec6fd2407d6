"""The benchmark's images and cases: what is built, what is run on it, and what the programs are to say."""

import dataclasses
import typing

TIB = 1 << 40


@dataclasses.dataclass
class Recipe:
    """How an image is made: a copy of `source`, if any, then the commands, then `then(path)`."""
    commands: tuple = ()  # OUT is the image's path, make_case the generator beside this file
    source: typing.Optional[str] = None
    then: typing.Optional[typing.Callable] = None
    file_bytes: int = 2 * TIB  # at least as long as the file will be


@dataclasses.dataclass
class Image:
    full: Recipe
    small: Recipe  # of the same shape, made and checked in no time


@dataclasses.dataclass
class Case:
    name: str
    about: str
    image: str
    exit_codes: tuple = (0, 0)  # of qemu-img and of qcow2check
    repair: typing.Optional[str] = None  # "leaks" or "all"
    cold: bool = False
    nbd_delay: typing.Optional[str] = None  # of each read, for nbdkit


def generated(small, file_bytes=2 * TIB, **options):
    """Made by make_case; `small`: the options that differ for the small image."""
    def recipe(chosen, length):
        flags = [f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
                 for name, value in chosen.items()]
        return Recipe(commands=(("make_case", "OUT", *flags),), file_bytes=length)
    return Image(recipe(options, file_bytes), recipe({**options, **small}, 2 * TIB))


def preallocated(size, small_size, cluster_size="64k"):
    def recipe(of_size):
        return Recipe(commands=(("qemu-img", "create", "-q", "-f", "qcow2", "-o",
                                 f"preallocation=metadata,cluster_size={cluster_size}", "OUT", of_size),))
    return Image(recipe(size), recipe(small_size))


def zero_refcount_table(path):
    with open(path, "rb+") as file:
        header = file.read(104)
        offset, clusters = int.from_bytes(header[48:56], "big"), int.from_bytes(header[56:60], "big")
        file.seek(offset)
        file.write(bytes(clusters << int.from_bytes(header[20:24], "big")))


REBUILD = Recipe(source="1t-64k", then=zero_refcount_table)

IMAGES = {
    "1t-64k": preallocated("1T", "4G"),
    "1t-no-refcounts": Image(REBUILD, REBUILD),
    "256g-64k": preallocated("256G", "4G"),
    "64g-4k": preallocated("64G", "64M", cluster_size="4k"),
    "200g-30snapshots": generated({"l1_entries": 4, "rewritten_tables": 2}, l1_entries=400, snapshots=30,
                                  rewritten_tables=10),
    "64g-scattered": generated({"l1_entries": 2}, l1_entries=128, scattered=True),
    "448k-200snapshots": generated({"l1_entries": 64, "snapshots": 4, "refcount_order": 3}, l1_entries=4096,
                                   one_l2_table=True, clusters_per_table=1, snapshots=200, shared_l1_table=True),
    "40960-l1-one-l2": generated({"l1_entries": 64}, l1_entries=40960, one_l2_table=True),
    "64t-sparse": generated({"l1_entries": 1024, "l2_tables": 8}, l1_entries=131072, l2_tables=1024,
                            clusters_per_table=64),
    "64t-2m": generated({"l1_entries": 1}, file_bytes=65 * TIB, cluster_bits=21, l1_entries=128),
    "1000-snapshots": generated({"l1_entries": 2, "snapshots": 20}, l1_entries=20, snapshots=1000),
    "1m-leaks": generated({"l1_entries": 2}, l1_entries=128, leaks_per_table=8192),
}

CASES = [
    Case("1t-64k", "1 TiB, 64 KiB clusters, all allocated", "1t-64k"),
    Case("1t-cold", "the same, dropped from the page cache before each run", "1t-64k", cold=True),
    Case("rebuild-1t", "the same with a zeroed refcount table, repaired", "1t-no-refcounts", repair="all"),
    Case("64g-4k", "64 GiB, 4 KiB clusters, all allocated", "64g-4k"),
    Case("200g-30snapshots", "200 GiB, all allocated, 30 internal snapshots", "200g-30snapshots"),
    Case("64g-scattered", "64 GiB, guest neighbours far apart in the file", "64g-scattered"),
    Case("nbd-2ms", "256 GiB over NBD, each read takes 2 ms", "256g-64k", nbd_delay="2ms"),
    Case("448k-200snapshots", "200 snapshots on one L1 table of 4,096 entries on one L2 table", "448k-200snapshots",
         exit_codes=(2, 2)),
    Case("40960-l1-one-l2", "40,960 L1 entries on one L2 table", "40960-l1-one-l2", exit_codes=(0, 2)),
    Case("64t-sparse", "64 TiB, 64 KiB clusters, 4 GiB allocated", "64t-sparse"),
    Case("64t-2m", "64 TiB, 2 MiB clusters, all allocated", "64t-2m"),
    Case("1000-snapshots", "10 GiB, all allocated, 1,000 snapshots that share it", "1000-snapshots"),
    Case("1m-leaks", "64 GiB and 1,048,576 leaked clusters", "1m-leaks", exit_codes=(3, 3)),
    Case("1m-leaks-repair", "the same, repaired (leaks)", "1m-leaks", repair="leaks"),
]
