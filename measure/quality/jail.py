"""The inside of :mod:`qplan.measure.quality.sandbox`: a program of the standard library alone, run as a script.

Arguments: the guard (``seccomp`` or ``audit``), seconds of CPU time, bytes of memory, and the descriptor that the
verdict goes to. Standard input brings a secret in its first line and the code behind it. The verdict is the secret and
``passed`` when the last line of the code was reached; code that ends the process itself cannot write it.

What is denied answers with "operation not permitted", so that code under test fails like any other wrong code.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
from typing import Any

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_FILTER_MODE = 2
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _DENY, _NOT_IMPLEMENTED, _KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000  # EPERM is 1, ENOSYS is 38
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16  # in struct seccomp_data
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CLONE_THREAD = 0x00010000
_X32 = 0x40000000

ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""AUDIT_ARCH code and column of the tables below, by machine."""

# System calls by number: on x86_64, on aarch64; None where there is no such call.
_DENIED: dict[str, tuple[int | None, int | None]] = {
    # network, also by way of io_uring
    "socket": (41, 198), "socketpair": (53, 199), "io_uring_setup": (425, 425),
    # processes
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438),
    # files
    "creat": (85, None), "openat2": (437, 437), "truncate": (76, 45), "memfd_create": (319, 279),
    "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276), "mkdir": (83, None), "mkdirat": (258, 34),
    "rmdir": (84, None), "link": (86, None), "linkat": (265, 37), "unlink": (87, None), "unlinkat": (263, 35),
    "symlink": (88, None), "symlinkat": (266, 36), "mknod": (133, None), "mknodat": (259, 33),
    "chmod": (90, None), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None), "lchown": (94, None),
    "fchmod": (91, 52), "fchown": (93, 55), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "removexattr": (197, 14), "lremovexattr": (198, 15),
    # limits, namespaces, the machine
    "setrlimit": (160, 164), "prlimit64": (302, 261), "unshare": (272, 97), "setns": (308, 268), "chroot": (161, 51),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "reboot": (169, 142), "sethostname": (170, 161), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
}  # fmt: skip
_OPEN = {"open": ((2, None), 1), "openat": ((257, 56), 2)}  # and which argument holds the flags
_CLONE, _CLONE3 = (56, 220), (435, 435)


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("if_true", ctypes.c_uint8),
        ("if_false", ctypes.c_uint8),
        ("operand", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


def deny_calls() -> None:
    """Install a seccomp filter for this thread and all that come after it; needs no privilege.

    Raises
    ------
    OSError
        The kernel does not take it, or the machine is not in :data:`ARCHITECTURES`.
    """
    if sys.platform != "linux" or platform.machine() not in ARCHITECTURES:
        raise OSError(f"no filter for {platform.machine()}")
    code, column = ARCHITECTURES[platform.machine()]
    lines: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_EQUAL, 1, 0, code),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    if column == 0:
        lines += [(_JUMP_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _DENY)]
    for numbers in _DENIED.values():
        number = numbers[column]
        if number is not None:
            lines += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _DENY)]
    for numbers, argument in _OPEN.values():
        number = numbers[column]
        if number is not None:
            lines += _by_flags(number, argument, _WRITING, if_any=_DENY, if_none=_ALLOW)
    lines += _by_flags(_CLONE[column], 0, _CLONE_THREAD, if_any=_ALLOW, if_none=_DENY)
    lines += [(_JUMP_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _NOT_IMPLEMENTED), (_RETURN, 0, 0, _ALLOW)]
    instructions = (_Instruction * len(lines))(*(_Instruction(*line) for line in lines))
    program = _Program(len(lines), instructions)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_SECCOMP, _FILTER_MODE, ctypes.byref(program))


def _by_flags(number: int, argument: int, flags: int, *, if_any: int, if_none: int) -> list[tuple[int, int, int, int]]:
    """Decide call `number` by whether any of `flags` is set in its argument."""
    return [
        (_JUMP_EQUAL, 0, 4, number),
        (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument),
        (_JUMP_ANY_BIT, 0, 1, flags),
        (_RETURN, 0, 0, if_any),
        (_RETURN, 0, 0, if_none),
    ]


def _prctl(option: int, *arguments: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    values = [value if not isinstance(value, int) else ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0)]
    if libc.prctl(option, *values[:4]):
        raise OSError(ctypes.get_errno(), "prctl")


_DENIED_EVENTS = (
    "socket.", "subprocess.", "shutil.", "ctypes.", "os.system", "os.exec", "os.fork", "os.spawn", "os.posix_spawn",
    "os.kill", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.chown", "os.link", "os.symlink",
    "os.truncate", "os.utime", "os.setxattr", "os.removexattr", "resource.setrlimit", "signal.pthread_kill",
)  # fmt: skip


def watch_events() -> None:
    """Deny network, processes and writing by Python's audit events: weaker, where no filter can be had."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
        if writes or event.startswith(_DENIED_EVENTS):
            raise PermissionError(f"{event} is not permitted")

    sys.addaudithook(hook)


def limit(cpu_s: int, memory_bytes: int) -> None:
    """Bound CPU time, memory, written files and open files of this process."""
    limits = {
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    for what, value in limits.items():
        try:
            resource.setrlimit(what, (value, value))
        except (ValueError, OSError):  # macOS bounds no memory; the deadline is outside
            continue


def main() -> None:
    """Run the code and write the verdict."""
    guard, cpu_s, memory_bytes, verdict = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, 9)
    secret, _, source = sys.stdin.buffer.read().decode().partition("\n")
    sys.stdin.close()
    silence = os.open(os.devnull, os.O_WRONLY)
    limit(cpu_s, memory_bytes)
    if guard == "seccomp":
        deny_calls()
    else:
        watch_events()
    os.dup2(silence, 2)  # until here a failure was one of the guard
    try:
        exec(compile(source, "candidate", "exec"), {"__name__": "candidate"})  # noqa: S102 - what this is for
    except BaseException as error:  # SystemExit too: the last line was not reached
        said = f"{type(error).__name__}: {error}".removesuffix(": ")[:300]
    else:
        said = f"{secret} passed"
    os.write(verdict, said.encode(errors="replace"))
    os._exit(0)


if __name__ == "__main__":
    main()
