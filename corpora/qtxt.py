#!/usr/bin/env python3
"""Converts disk images to and from qtxt, the reviewable text form that README.md describes.

    qtxt.py to-image TEXT IMAGE      write the image that TEXT describes (sparse)
    qtxt.py from-image IMAGE TEXT    write IMAGE as text, its zeros left out

A file name of "-" is standard input or output; an image can be read from "-" but not written to it.
Time and memory grow with the bytes that are not zero, but for from-image, which reads the whole image.
"""

import argparse
import itertools
import sys

CHUNK = 1 << 20  # Bytes read from an image at a time; a multiple of WORD.
WORD = 8  # The unit that from-image leaves out (zeros) or folds (equal neighbours): most tables' entry.
WORDS_IN_LINE = 2


class QtxtError(ValueError):
    """The text is not valid qtxt; the message starts with the line number."""


def parse(text):
    """Returns the image size and its runs, [(offset, bytes), ...], in order of offset."""
    size = None
    runs = []
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        try:
            keyword, _, value = line.partition(" ")
            if keyword == "size":
                if size is not None:
                    raise QtxtError("a second size")
                size = _number(value)
            else:
                runs.append((*_run(line), number))
        except QtxtError as error:
            raise QtxtError(f"line {number}: {error}") from None
    if size is None:
        raise QtxtError("line 1: no size line")
    runs.sort(key=lambda run: run[0])
    end = 0
    for offset, data, number in runs:
        if offset < end:
            raise QtxtError(f"line {number}: bytes at {offset:#x} are given twice")
        end = offset + len(data)
        if end > size:
            raise QtxtError(f"line {number}: bytes end at {end:#x}, past the size {size:#x}")
    return size, [(offset, data) for offset, data, _ in runs]


def _run(line):
    """Parses `OFFSET: HEX... [* COUNT]`."""
    offset, colon, rest = line.partition(":")
    if not colon:
        raise QtxtError("neither a size nor OFFSET: bytes")
    groups, star, count = rest.partition("*")
    data = b""
    for group in groups.split():
        try:
            if len(group) % 2:
                raise ValueError
            data += bytes.fromhex(group)
        except ValueError:
            raise QtxtError(f"'{group}' is not hexadecimal digits in pairs") from None
    if not data:
        raise QtxtError("no bytes after the offset")
    times = _number(count) if star else 1
    if times == 0:
        raise QtxtError("a repeat count of zero")
    return _number(offset), data * times


def _number(text):
    text = text.strip()
    digits, base = (text[2:], 16) if text[:2] in ("0x", "0X") else (text, 10)
    if not digits.isascii() or not digits.isalnum():
        raise QtxtError(f"'{text}' is not a number")
    try:
        return int(digits, base)
    except ValueError:
        raise QtxtError(f"'{text}' is not a number") from None


def format_lines(chunks):
    """Returns the lines that describe the image made of these byte strings in order."""
    lines = []
    size = 0
    for chunk in chunks:
        lines += _format_chunk(size, chunk)
        size += len(chunk)
    return [f"size {size:#x}"] + lines


def _format_chunk(base, chunk):
    words = [chunk[i:i + WORD] for i in range(0, len(chunk), WORD)]
    runs = []  # [offset, unit, times]
    offset = base
    for word, group in itertools.groupby(words):
        count = len(list(group))
        if not any(word):
            pass
        elif count > 1:
            unit = _smallest_period(word)
            runs.append([offset, unit, count * WORD // len(unit)])
        elif runs and _takes_another_word(runs[-1], offset):
            runs[-1][1] += word
        else:
            runs.append([offset, word, 1])
        offset += count * WORD
    return [_format_run(*run) for run in runs]


def _takes_another_word(run, offset):
    start, unit, times = run
    return times == 1 and start + len(unit) == offset and len(unit) < WORDS_IN_LINE * WORD


def _format_run(offset, unit, times):
    return f"{offset:#x}: {unit.hex(' ')}" + (f" * {times}" if times > 1 else "")


def _smallest_period(word):
    for length in range(1, len(word)):
        if len(word) % length == 0 and word == word[:length] * (len(word) // length):
            return word[:length]
    return word


def write_image(path, size, runs):
    with open(path, "wb") as image:
        image.truncate(size)
        for offset, data in runs:
            image.seek(offset)
            image.write(data)


def _read_chunks(stream):
    while chunk := stream.read(CHUNK):
        yield chunk


def main():
    parser = argparse.ArgumentParser(description="Converts disk images to and from qtxt.")
    commands = parser.add_subparsers(dest="command", required=True)
    to_image = commands.add_parser("to-image", help="write the image that a text describes")
    to_image.add_argument("text", metavar="TEXT", type=argparse.FileType("r", encoding="utf-8"))
    to_image.add_argument("image", metavar="IMAGE")
    from_image = commands.add_parser("from-image", help="write an image as text")
    from_image.add_argument("image", metavar="IMAGE", type=argparse.FileType("rb"))
    from_image.add_argument("text", metavar="TEXT", type=argparse.FileType("w", encoding="utf-8"))
    arguments = parser.parse_args()

    if arguments.command == "from-image":
        print(*format_lines(_read_chunks(arguments.image)), sep="\n", file=arguments.text)
        return 0
    try:
        size, runs = parse(arguments.text.read())
    except QtxtError as error:
        print(f"{arguments.text.name}: {error}", file=sys.stderr)
        return 1
    write_image(arguments.image, size, runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
