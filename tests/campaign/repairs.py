"""The repair of both tools on copies of one damaged image.

What ours leaves must be what qemu-img sees, too, up to the classes of differences.py; and never may qemu-img's result
read as the undamaged disk where ours does not.
"""

import shutil
import subprocess

import differences
import reports


def run(*command):
    return subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL).returncode


def reads_as(sound, image):
    """Whether the guest reads the same from both."""
    return run("timeout", reports.TIMEOUT_SECONDS, "qemu-img", "compare", "-f", "qcow2", "-F", "qcow2",
               sound, image) == 0


def try_both(case, sound, make_case):
    """(what qemu-img check says after ours, after its own, each as an exit code; Outcome of the comparison)."""
    ours, qemus = case.image.with_suffix(".ours"), case.image.with_suffix(".qemus")
    shutil.copy(case.image, ours)
    run(case.programs / "qcow2check", "--repair", "--no-undo", ours)
    repaired = make_case(ours)
    outcome = differences.compare(repaired) if repaired.differs() else differences.Outcome()
    outcome.unexplained = [f"after our repair: {line}" for line in outcome.unexplained]

    shutil.copy(case.image, qemus)
    run("timeout", reports.TIMEOUT_SECONDS, "qemu-img", "check", "-q", "-r", "all", "-f", "qcow2", qemus)
    after_qemus = reports.ask_qemu(qemus)
    if not reads_as(sound, qemus) or reads_as(sound, ours):
        pass
    elif repaired.ours.count("snapshot-table-invalid") or repaired.ours.count("snapshot-extra-too-large"):
        # QEMU opens no image with such a table; its repair makes a new one, without the snapshots.
        outcome.classes.add("repair-keeps-snapshots")
    else:
        outcome.unexplained.append("qemu-img's repair brings back the undamaged disk, ours does not")
    ours.unlink()
    qemus.unlink()
    return repaired.qemu.exit_code, after_qemus.exit_code, outcome
