"""The package in two versions, the image, and two machines: made once for all tests, which stand in a row."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.vm.machine import Machine

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
NEEDS = ("qemu-system-x86_64", "mmdebstrap", "dpkg-deb", "mkfs.ext4")
VERSIONS = ("1.0.0", "1.0.1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Minutes long, so only when asked for by name: ``-m vm``."""
    if "vm" in str(config.option.markexpr):
        return
    left_out = [item for item in items if item.get_closest_marker("vm")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


class Pair:
    """Both machines."""

    def __init__(self, one: Machine, two: Machine) -> None:
        self.one, self.two = one, two
        self.both = (one, two)

    def at_once(self, work: Callable[[Machine], Any]) -> list[Any]:
        """Do the same on both at the same time."""
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(work, self.both))


def _run(*command: str | Path, timeout_s: float = 600, **environ: str) -> str:
    done = subprocess.run(
        [str(word) for word in command], env={**os.environ, **environ}, capture_output=True, text=True,
        timeout=timeout_s, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr}{done.stdout}")
    return done.stdout.strip()


@pytest.fixture(scope="session")
def image() -> Path:
    """Kernel and root file system; built when there is none of this content yet."""
    if missing := [name for name in NEEDS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]:
        pytest.fail(f"to build the virtual machines, these are missing: {', '.join(missing)}")
    cache = os.environ.get("FELIXPY_VM_CACHE") or Path.home() / ".cache" / "felixpy-vm"
    return Path(_run(HERE / "make-image", cache).splitlines()[-1])


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file system with ``felixpy-<version>.deb``, of both versions; they differ in nothing but the number."""
    folder = tmp_path_factory.mktemp("package")
    content = folder / "content"
    content.mkdir()
    first = _run(PROJECT / "packaging" / "build-deb", folder, VERSION=VERSIONS[0]).splitlines()[-1]
    shutil.copy(first, content / f"felixpy-{VERSIONS[0]}.deb")
    _run("dpkg-deb", "-R", first, folder / "tree")
    control = folder / "tree" / "DEBIAN" / "control"
    control.write_text(control.read_text().replace(f"Version: {VERSIONS[0]}", f"Version: {VERSIONS[1]}"))
    _run("dpkg-deb", "-Zzstd", "--root-owner-group", "-b", folder / "tree", content / f"felixpy-{VERSIONS[1]}.deb")
    disk = folder / "disk.ext4"
    with disk.open("wb") as file:
        file.truncate(96 << 20)
    _run("mkfs.ext4", "-q", "-F", "-d", content, disk)
    return disk


@pytest.fixture(scope="session")
def machines(image: Path, disk: Path) -> Iterator[Pair]:
    """Two machines, booted, with the packages on /mnt; nothing of ours is installed yet."""
    with ExitStack() as stack:
        # not pytest's own: the path of a Unix socket has 107 bytes
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vm-")))
        pair = Pair(*(stack.enter_context(Machine(number, image, disk, folder)) for number in (1, 2)))
        pair.at_once(Machine.booted)
        pair.at_once(lambda machine: machine.run("mount -o ro /dev/nvme1n1 /mnt"))
        yield pair
