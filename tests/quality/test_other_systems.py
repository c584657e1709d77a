"""What only POSIX has is not asked for where it is missing, as on Windows.

A child process loses those modules and functions, and does what everybody does first.
"""

from __future__ import annotations

from pathlib import Path

from tests.quality.paths import run_python
from tests.validation.case_trees import write_flow

WITHOUT_POSIX = """
import os, signal, sys, types
# Packages of others ask for the system when they are imported, and may keep what they found.
import click, flatbuffers, jsonschema, ml_dtypes, multiprocessing.connection, numpy, onnx, pydantic
import importlib.metadata, rich.console, rich.table, safetensors.numpy, subprocess, sysconfig, yaml

sysconfig.get_config_vars()
for module in ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"):
    sys.modules[module] = None
for name in (
    "O_CLOEXEC O_DIRECTORY O_NOCTTY O_NOFOLLOW O_NONBLOCK copy_file_range fchown fdatasync fork "
    "geteuid getpgid getuid getxattr killpg mkfifo pathconf posix_fadvise posix_fallocate pread "
    "preadv pwrite pwritev sched_getaffinity sendfile setsid statvfs sync sysconf"
).split():
    vars(os).pop(name, None)
for name in "SIGALRM SIGHUP SIGKILL SIGUSR1 alarm pthread_sigmask setitimer".split():
    vars(signal).pop(name, None)
locks = types.ModuleType("msvcrt")
locks.LK_NBLCK, locks.locking = 2, lambda descriptor, mode, size: None
sys.modules["msvcrt"] = locks
sys.platform = "win32"

from lora_quant.cli.main import run

config, output = sys.argv[1:]
assert run(["build", config, "-o", output]) == 0
assert run(["build", config, "-o", output, "--force"]) == 0
assert run(["validate", "--jobs", "1", output, config]) == 0
"""


def test_builds_and_validates_without_what_only_posix_has(tmp_path: Path) -> None:
    config = write_flow(tmp_path / "flow") / "lora_config.yaml"
    done = run_python("-c", WITHOUT_POSIX, str(config), str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
