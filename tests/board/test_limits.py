"""Limits of control groups, of both versions, laid out below another root; and those of this process for
real."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import command_environment

from vgg_runtime.board import device, limits
from vgg_runtime.doctor import machine

MB = 1_000_000
UNLIMITED_1 = "9223372036854771712"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def second(root: Path, path: str, **own: str) -> Path:
    """A group of version 2 at ``path``, with the files that are given for it."""
    names = {name.replace("_", "."): value for name, value in own.items()}
    folder = f"sys/fs/cgroup{path}".rstrip("/")
    return write(root, {"proc/self/cgroup": f"0::{path}\n", **{f"{folder}/{n}": v for n, v in names.items()}})


def test_without_groups_there_are_no_limits(tmp_path: Path) -> None:
    assert (limits.memory_bytes(tmp_path), limits.free_memory_bytes(tmp_path), limits.cores(tmp_path)) == (
        None,
        None,
        None,
    )
    assert limits.threads(4, tmp_path) == 4
    second(tmp_path, "/", memory_max="max\n", cpu_max="max 100000\n", memory_current="5\n")
    assert (limits.memory_bytes(tmp_path), limits.cores(tmp_path)) == (None, None)


def test_a_container_of_version_2(tmp_path: Path) -> None:
    stat = f"anon 1\ninactive_file {20 * MB}\nactive_file 3\n"
    second(
        tmp_path,
        "/",
        memory_max=f"{70 * MB}\n",
        memory_current=f"{50 * MB}\n",
        memory_stat=stat,
        cpu_max="50000 100000\n",
    )
    assert limits.memory_bytes(tmp_path) == 70 * MB
    assert limits.free_memory_bytes(tmp_path) == 40 * MB  # pages that can be dropped are free
    assert limits.cores(tmp_path) == 0.5
    assert limits.threads(2, tmp_path) == 1


def test_the_tightest_of_all_groups_above_counts(tmp_path: Path) -> None:
    second(tmp_path, "/user.slice/app.service", memory_max=f"{900 * MB}", memory_current=f"{100 * MB}")
    above = tmp_path / "sys/fs/cgroup/user.slice"
    write(above, {"memory.max": f"{500 * MB}", "memory.current": f"{450 * MB}", "cpu.max": "250000 100000"})
    assert limits.memory_bytes(tmp_path) == 500 * MB
    assert limits.free_memory_bytes(tmp_path) == 50 * MB
    assert limits.cores(tmp_path) == 2.5
    assert [limits.threads(n, tmp_path) for n in (1, 2, 4)] == [1, 2, 2]


def test_version_1_has_a_tree_for_each_controller(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "12:cpu,cpuacct:/docker/a\n5:memory:/docker/a\n1:name=systemd:/docker/a\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": UNLIMITED_1,
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "1",
            "sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes": f"{256 * MB}",
            "sys/fs/cgroup/memory/docker/a/memory.usage_in_bytes": f"{100 * MB}",
            "sys/fs/cgroup/memory/docker/a/memory.stat": f"cache 1\ntotal_inactive_file {6 * MB}\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/a/cpu.cfs_quota_us": "150000",
            "sys/fs/cgroup/cpu,cpuacct/docker/a/cpu.cfs_period_us": "100000",
        },
    )
    assert limits.memory_bytes(tmp_path) == 256 * MB
    assert limits.free_memory_bytes(tmp_path) == 162 * MB
    assert limits.cores(tmp_path) == 1.5
    write(tmp_path, {"sys/fs/cgroup/cpu,cpuacct/docker/a/cpu.cfs_quota_us": "-1"})
    assert limits.cores(tmp_path) is None


def test_a_container_sees_its_own_group_at_the_top(tmp_path: Path) -> None:
    """With version 1 the path is the host's, and the files lie at the mount."""
    write(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/docker/a\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{64 * MB}",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{60 * MB}",
        },
    )
    assert limits.free_memory_bytes(tmp_path) == 4 * MB


def test_version_1_counts_the_pages_of_the_groups_inside_apart(tmp_path: Path) -> None:
    """The usage of a group holds that of the groups in it, and ``inactive_file`` is its own alone."""
    write(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/parent/child\n",
            "sys/fs/cgroup/memory/parent/memory.limit_in_bytes": f"{1 << 30}",
            "sys/fs/cgroup/memory/parent/memory.usage_in_bytes": f"{(1 << 30) - 10}",
            "sys/fs/cgroup/memory/parent/memory.stat": (
                f"inactive_file 0\nactive_file 3\ntotal_inactive_file {512 << 20}\n"
            ),
        },
    )
    assert limits.free_memory_bytes(tmp_path) == (512 << 20) + 10


@pytest.mark.parametrize(
    ("most", "high", "limit", "free"),
    [
        ("max", "256000000", 256 * MB, 156 * MB),
        ("300000000", "256000000", 256 * MB, 156 * MB),
        ("200000000", "256000000", 200 * MB, 100 * MB),
        ("200000000", "max", 200 * MB, 100 * MB),
        ("max", "max", None, None),
    ],
)
def test_the_memory_above_which_a_service_is_slowed_down_is_a_limit(
    most: str, high: str, limit: int | None, free: int | None, tmp_path: Path
) -> None:
    second(tmp_path, "/", memory_max=most, memory_high=high, memory_current=f"{100 * MB}")
    assert (limits.memory_bytes(tmp_path), limits.free_memory_bytes(tmp_path)) == (limit, free)


def test_controllers_that_share_a_folder_may_be_named_in_any_order(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "4:cpuacct,cpu:/a\n",
            "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "150000",
            "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000",
        },
    )
    assert limits.cores(tmp_path) == 1.5


def test_groups_are_found_where_they_are_mounted(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/a\n0::/b\n",
            "proc/self/mountinfo": (
                "rubbish\n"
                "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
                "35 31 0:32 / /mnt/groups rw shared:3 - cgroup cgroup rw,memory\n"
                "36 31 0:33 / /mnt/others rw - cgroup cgroup rw,pids\n"
                "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
            ),
            "mnt/groups/a/memory.limit_in_bytes": f"{64 * MB}",
            "mnt/others/a/memory.limit_in_bytes": f"{1 * MB}",
            "sys/fs/cgroup/unified/b/cpu.max": "50000 100000",
        },
    )
    assert (limits.memory_bytes(tmp_path), limits.cores(tmp_path)) == (64 * MB, 0.5)


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """What follows is done by a user who may not do everything."""
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(mine)


@pytest.fixture
def for_all() -> Iterator[Path]:
    """A folder that every user may search, which pytest's is not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.parametrize("closed", ["sys/fs/cgroup", "sys/fs/cgroup/memory", "proc/self", "sys", "proc"])
def test_what_may_not_be_searched_says_nothing(closed: str, for_all: Path) -> None:
    """As with a hardened service or in a sandbox: Path.is_dir raises PermissionError there."""
    write(for_all, {"proc/self/cgroup": "5:memory:/a\n4:cpuacct,cpu:/a\n0::/b\n"})
    for name in ("memory/a", "cpu/a", "b"):
        (for_all / "sys/fs/cgroup" / name).mkdir(parents=True)
    write(for_all, {"sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{64 * MB}"})
    write(for_all, {"sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n"})
    assert limits.memory_bytes(for_all) == 64 * MB
    (for_all / closed).chmod(0)
    try:
        with nobody():
            found = limits.memory_bytes(for_all), limits.free_memory_bytes(for_all), limits.cores(for_all)
            board, check = device.describe(1, for_all), machine.allowed(for_all)
    finally:
        (for_all / closed).chmod(0o755)
    assert found == (None, None, None)
    assert (board.ram_bytes, board.available_bytes) == (None, None)
    assert check.mark == ("unknown" if closed.startswith("proc") else "ok")


NO_NUMBERS = ["²", "٣", "9" * 5000]  # isdigit says that the first is one, and int refuses the last


@pytest.mark.parametrize("rubbish", ["", "x\n", "-5\n", "\xff", "1 2 3\n", *NO_NUMBERS])
def test_rubbish_is_no_limit(rubbish: str, tmp_path: Path) -> None:
    second(tmp_path, "/", memory_current=rubbish, cpu_max=rubbish)
    assert limits.free_memory_bytes(tmp_path) is None
    assert limits.cores(tmp_path) is None
    write(tmp_path, {"proc/self/cgroup": f"{rubbish}:{rubbish}:/../../etc\n"})
    assert limits.memory_bytes(tmp_path) is None


@pytest.mark.parametrize("rubbish", NO_NUMBERS)
def test_odd_digits_are_no_number(rubbish: str, tmp_path: Path) -> None:
    pages = f"inactive_file {rubbish}\n"
    second(tmp_path, "/", memory_max=rubbish, memory_high=f"{9 * MB}", memory_stat=pages, memory_current="5")
    assert (limits.memory_bytes(tmp_path), limits.free_memory_bytes(tmp_path)) == (9 * MB, 9 * MB - 5)
    second(tmp_path, "/", cpu_max=f"{rubbish} 100000")
    assert limits.cores(tmp_path) is None
    second(tmp_path, "/", cpu_max=f"100000 {rubbish}")
    assert limits.cores(tmp_path) is None
    own(tmp_path, rubbish, rubbish)
    assert limits.process_memory_bytes(tmp_path) is None


def test_the_device_is_no_larger_than_the_group(tmp_path: Path) -> None:
    second(tmp_path, "/", memory_max=f"{70 * MB}", memory_current=f"{50 * MB}", cpu_max="50000 100000")
    write(tmp_path, {"proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable: 7000000 kB\n"})
    board = device.describe(1, tmp_path)
    assert (board.ram_bytes, board.available_bytes) == (70 * MB, 20 * MB)
    write(tmp_path, {"proc/meminfo": "MemTotal: 50000 kB\nMemAvailable: 10000 kB\n"})
    board = device.describe(1, tmp_path)
    assert (board.ram_bytes, board.available_bytes) == (50_000 * 1024, 10_000 * 1024)


def test_the_doctor_names_the_limits(tmp_path: Path) -> None:
    assert machine.allowed(tmp_path).mark == "unknown"
    second(tmp_path, "/")
    assert machine.allowed(tmp_path).found == "no limit of memory or time is set for this process"
    second(tmp_path, "/", memory_max=f"{70 * MB}", cpu_max="50000 100000")
    found = machine.allowed(tmp_path)
    assert found.found == "a control group allows 70 MB of memory and 0.5 cores' worth of time"
    assert found.mark == "warning"
    assert "raise the quota" in (found.remedy or "")
    second(tmp_path, "/", cpu_max="300000 100000")
    assert machine.allowed(tmp_path).mark == "ok"


def test_the_mask_of_this_process_counts() -> None:
    code = (
        "import os; from vgg_runtime.board import device;"
        " os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(device.usable_cores())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=command_environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "1"
    assert 1 <= device.usable_cores() <= len(os.sched_getaffinity(0))


def own(root: Path, space: str, data: str) -> None:
    row = "{:26}{:21}{:21}bytes\n"
    limits_text = row.format("Max data size", data, "unlimited") + row.format(
        "Max address space", space, "unlimited"
    )
    write(root, {"proc/self/limits": limits_text, "proc/self/status": "VmSize: 30000 kB\nVmData: 10000 kB\n"})


@pytest.mark.parametrize(
    ("space", "data", "most", "free"),
    [
        ("unlimited", "unlimited", None, None),
        ("500000000", "unlimited", 500_000_000, 500_000_000 - 30_000 * 1024),
        ("unlimited", "90000000", 90_000_000, 90_000_000 - 10_000 * 1024),
        ("100000000", "90000000", 90_000_000, 100_000_000 - 30_000 * 1024),  # the space is nearer its end
        ("1000", "unlimited", 1000, 0),
        (str((1 << 63) - 1), "unlimited", None, None),
        ("x", "-1", None, None),
    ],
)
def test_the_limits_of_the_process(
    space: str, data: str, most: int | None, free: int | None, tmp_path: Path
) -> None:
    own(tmp_path, space, data)
    board = device.describe(1, tmp_path)
    assert (board.ram_bytes, board.available_bytes) == (most, free)


def test_the_doctor_names_the_limits_of_the_process(tmp_path: Path) -> None:
    own(tmp_path, "90000000", "unlimited")
    assert machine.allowed(tmp_path).found == "ulimit allows 90 MB of address space or data"
    second(tmp_path, "/", memory_max=f"{70 * MB}")
    assert machine.allowed(tmp_path).found == (
        "a control group allows 70 MB of memory; ulimit allows 90 MB of address space or data"
    )


def test_a_real_limit_is_found() -> None:
    code = (
        "import resource; from vgg_runtime.board import limits;"
        " resource.setrlimit(resource.RLIMIT_AS, (3_000_000_000, 3_000_000_000));"
        " print(limits.process_memory_bytes(), 0 < limits.free_process_memory_bytes() < 3_000_000_000)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=command_environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["3000000000", "True"]
