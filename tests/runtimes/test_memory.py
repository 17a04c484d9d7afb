"""Free memory as the kernel's files tell it, in and out of control groups, and the slots that fit."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3asr.errors import KvMemoryShort, Qwen3AsrError, RequestInvalid
from qwen3asr.memory import available_bytes, choose_slots, free_bytes, group_mounts, group_paths

steady = settings(deadline=None, derandomize=True, database=None, max_examples=200)

MEMINFO = "MemTotal:       16000000 kB\nMemFree:         1000000 kB\nMemAvailable:    8000000 kB\n"
AVAILABLE = 8_000_000 * 1024
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = (
    "32 23 0:28 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
    "33 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
)
NO_LIMIT = 9_223_372_036_854_771_712


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def proc(cgroup: str, mounts: str, meminfo: str = MEMINFO) -> dict[str, str]:
    return {"proc/meminfo": meminfo, "proc/self/cgroup": cgroup, "proc/self/mountinfo": mounts}


def v2(folder: str, limit: object, used: int, inactive: int = 0, high: object = "max") -> dict[str, str]:
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.high": f"{high}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": f"anon 5\nactive_file 77\ninactive_file {inactive}\n",
    }


def v1(folder: str, limit: int, used: int, inactive: int = 0) -> dict[str, str]:
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{used}\n",
        f"{folder}/memory.stat": f"cache 9\ninactive_file 1\ntotal_inactive_file {inactive}\n",
    }


# --- what the kernel writes ------------------------------------------------------------------------------------


def test_available_memory_is_in_kibibytes() -> None:
    assert available_bytes(MEMINFO) == AVAILABLE
    assert available_bytes("MemTotal: 5 kB\n") is None
    assert available_bytes("") is None


def test_the_groups_of_a_process_are_those_with_memory() -> None:
    assert group_paths("0::/user.slice/a.service\n") == {"cgroup2": PurePosixPath("/user.slice/a.service")}
    hybrid = "9:name=systemd:/\n4:memory:/jobs/a:b\n3:cpu,cpuacct:/x\n0::/\n"
    assert group_paths(hybrid) == {"cgroup": PurePosixPath("/jobs/a:b"), "cgroup2": PurePosixPath("/")}
    assert group_paths("3:cpu,memory:/both\n") == {"cgroup": PurePosixPath("/both")}
    assert group_paths("") == {}


def test_mounts_are_found_with_the_group_that_they_show() -> None:
    root, place = PurePosixPath("/"), PurePosixPath("/sys/fs/cgroup")
    assert group_mounts(V2_MOUNT) == {"cgroup2": (root, place)}
    assert group_mounts(V1_MOUNT) == {"cgroup": (root, place / "memory")}
    docker = r"32 23 0:28 /docker/ab /my\040groups ro - cgroup cgroup rw,memory"
    assert group_mounts(docker) == {"cgroup": (PurePosixPath("/docker/ab"), PurePosixPath("/my groups"))}
    assert group_mounts("22 1 0:3 / /proc rw - proc proc rw\n") == {}


# --- free memory -----------------------------------------------------------------------------------------------


def test_without_groups_it_is_what_the_machine_has(tmp_path: Path) -> None:
    assert free_bytes(write(tmp_path, {"proc/meminfo": MEMINFO})) == AVAILABLE


def test_elsewhere_than_on_linux_it_is_unknown(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) is None
    assert free_bytes(write(tmp_path, {"proc/meminfo": "MemTotal: 5 kB\n"})) is None


def test_on_this_machine_it_is_some() -> None:
    free = free_bytes()
    assert free is None or free > 0


def test_a_group_leaves_its_limit_less_what_cannot_be_reclaimed(tmp_path: Path) -> None:
    files = proc("0::/a\n", V2_MOUNT) | v2("sys/fs/cgroup/a", 1_000_000, 700_000, 200_000)
    assert free_bytes(write(tmp_path, files)) == 500_000


def test_the_level_at_which_the_kernel_throttles_counts(tmp_path: Path) -> None:
    files = proc("0::/a\n", V2_MOUNT) | v2("sys/fs/cgroup/a", 1_000_000, 700_000, high=800_000)
    assert free_bytes(write(tmp_path, files)) == 100_000


def test_the_tightest_group_up_the_path_decides(tmp_path: Path) -> None:
    files = proc("0::/a/b/c\n", V2_MOUNT)
    files |= v2("sys/fs/cgroup/a/b/c", "max", 10) | v2("sys/fs/cgroup/a/b", 900, 300) | v2("sys/fs/cgroup/a", 800, 400)
    assert free_bytes(write(tmp_path, files)) == 400


def test_the_machine_decides_where_the_groups_allow_more(tmp_path: Path) -> None:
    files = proc("0::/a\n", V2_MOUNT) | v2("sys/fs/cgroup/a", 2 * AVAILABLE, 0)
    assert free_bytes(write(tmp_path, files)) == AVAILABLE


def test_a_group_past_its_limit_leaves_nothing(tmp_path: Path) -> None:
    files = proc("0::/a\n", V2_MOUNT) | v2("sys/fs/cgroup/a", 1_000, 1_500)
    assert free_bytes(write(tmp_path, files)) == 0


def test_the_first_version_of_groups_has_files_of_its_own(tmp_path: Path) -> None:
    files = proc("5:memory:/jobs/a\n", V1_MOUNT)
    files |= v1("sys/fs/cgroup/memory/jobs/a", NO_LIMIT, 400) | v1("sys/fs/cgroup/memory/jobs", 1_000, 600, 50)
    assert free_bytes(write(tmp_path, files)) == 450


def test_where_both_versions_are_mounted_both_count(tmp_path: Path) -> None:
    files = proc("5:memory:/a\n0::/a\n", V1_MOUNT + V2_MOUNT.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified"))
    files |= v1("sys/fs/cgroup/memory/a", 1_000, 100) | v2("sys/fs/cgroup/unified/a", 500, 100)
    assert free_bytes(write(tmp_path, files)) == 400


def test_a_container_that_sees_only_its_own_group_finds_it(tmp_path: Path) -> None:
    """The path is as the host has it, the mount starts at the container's group."""
    mount = V1_MOUNT.replace("0:28 / ", "0:28 /docker/ab ")
    files = proc("5:memory:/docker/ab/inner\n", mount)
    files |= v1("sys/fs/cgroup/memory", 1_000, 100) | v1("sys/fs/cgroup/memory/inner", 300, 100)
    assert free_bytes(write(tmp_path, files)) == 200


@pytest.mark.parametrize("path", ["/elsewhere/ab", "/../../other"])
def test_a_path_outside_of_the_mount_falls_back_on_what_is_mounted(tmp_path: Path, path: str) -> None:
    mount = V1_MOUNT.replace("0:28 / ", "0:28 /docker/ab ") if path.startswith("/e") else V1_MOUNT
    files = proc(f"5:memory:{path}\n", mount) | v1("sys/fs/cgroup/memory", 1_000, 100)
    files |= v1("sys/fs/other", 50, 0)  # where the dots would lead
    assert free_bytes(write(tmp_path, files)) == 900


@pytest.mark.parametrize("missing", ["memory.max", "memory.current", "memory.stat", "memory.high"])
def test_hidden_files_are_done_without(tmp_path: Path, missing: str) -> None:
    files = proc("0::/a\n", V2_MOUNT) | v2("sys/fs/cgroup/a", 1_000, 600, 100, high=1_000)
    del files[f"sys/fs/cgroup/a/{missing}"]
    expected = {"memory.current": AVAILABLE, "memory.stat": 400}.get(missing, 500)
    assert free_bytes(write(tmp_path, files)) == expected


# --- slots -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "slots"), [(0, 1), (199, 1), (400, 2), (599, 2), (600, 3), (1_600, 8), (10_000, 8), (None, 1)]
)
def test_by_default_half_of_what_is_free_is_filled(free: int | None, slots: int) -> None:
    assert choose_slots(100, free) == slots


def test_share_and_most_can_be_set() -> None:
    assert choose_slots(100, 1_000, share=0.9) == 9 - 1
    assert choose_slots(100, 1_000, share=0.9, most=20) == 9
    assert choose_slots(100, 1_000, most=2) == 2


@pytest.mark.parametrize(("wanted", "free"), [(10, 1_000), (1, 0), (1, 50), (500, None), (9, 950)])
def test_what_is_wanted_and_fits_is_granted(wanted: int, free: int | None) -> None:
    assert choose_slots(100, free, wanted) == wanted


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    with pytest.raises(KvMemoryShort) as caught:
        choose_slots(100_000_000, 450_000_000, 9)
    assert isinstance(caught.value, MemoryError)
    assert isinstance(caught.value, Qwen3AsrError)
    assert str(caught.value) == (
        "slots=9 need 900 MB of KV cache, and 450 MB are free: 4 would fit; "
        "give slots=4, or a capacity= 2.0 times smaller"
    )


def test_the_message_stands_even_where_nothing_is_free() -> None:
    with pytest.raises(KvMemoryShort, match="1 would fit"):
        choose_slots(100, 0, 2)


@pytest.mark.parametrize("wanted", [0, -1])
def test_fewer_than_one_slot_is_refused(wanted: int) -> None:
    with pytest.raises(RequestInvalid, match="at least 1"):
        choose_slots(100, 1_000, wanted)


@steady
@given(st.integers(1, 10**9), st.integers(0, 10**12), st.integers(1, 32))
def test_the_default_fits_and_one_more_would_not(slot_bytes: int, free: int, most: int) -> None:
    slots = choose_slots(slot_bytes, free, most=most)
    assert 1 <= slots <= most
    assert slots == 1 or slots * slot_bytes <= free // 2 + 1
    assert slots == most or (slots + 1) * slot_bytes > free // 2
