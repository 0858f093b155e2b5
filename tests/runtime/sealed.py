"""Run a Python script in a process that the kernel ends if it tries to reach anything.

    python sealed.py SCRIPT ARGUMENTS…

Linux on x86-64 only. The kernel (seccomp) ends the whole process with SIGSYS, whoever calls, Python or a library, when
it connects any socket, makes a socket of another kind than TCP or Unix (so no name is asked for over UDP), or calls as
a 32-bit program would; io_uring, through which it could do either unseen, is missing. A server can still listen, and
answer who comes to it.
"""

import ctypes
import runpy
import struct
import sys

SOCKET, CONNECT, SENDTO, IO_URING_SETUP = 41, 42, 44, 425
AF_UNIX, AF_INET, AF_INET6, SOCK_STREAM, TYPE_MASK = 1, 2, 10, 1, 0xF
X86_64, X32_BIT = 0xC000003E, 0x40000000

LOAD, EQUAL, AT_LEAST, AND, RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
KILL_PROCESS, FAIL, ALLOW, ENOSYS = 0x80000000, 0x50000, 0x7FFF0000, 38
NUMBER, ARCHITECTURE, FIRST, SECOND, FIFTH = 0, 4, 16, 24, 48  # offsets in what the kernel shows of a call

# (operation, operand, jump if true, jump if false): jumps go to a label, or on.
PROGRAM = [
    ("", LOAD, ARCHITECTURE, None, None),
    ("", EQUAL, X86_64, None, "kill"),
    ("", LOAD, NUMBER, None, None),
    ("", AT_LEAST, X32_BIT, "kill", None),
    ("", EQUAL, CONNECT, "kill", None),
    ("", EQUAL, IO_URING_SETUP, "lack", None),
    ("", EQUAL, SENDTO, "sendto", None),
    ("", EQUAL, SOCKET, None, "allow"),
    ("", LOAD, FIRST, None, None),
    ("", EQUAL, AF_UNIX, "allow", None),
    ("", EQUAL, AF_INET, "type", None),
    ("", EQUAL, AF_INET6, None, "kill"),
    ("type", LOAD, SECOND, None, None),
    ("", AND, TYPE_MASK, None, None),
    ("", EQUAL, SOCK_STREAM, "allow", "kill"),
    ("sendto", LOAD, FIFTH, None, None),  # an address to send to, of which the lower half is enough
    ("", EQUAL, 0, "allow", "kill"),
    ("lack", RETURN, FAIL | ENOSYS, None, None),
    ("allow", RETURN, ALLOW, None, None),
    ("kill", RETURN, KILL_PROCESS, None, None),
]


def seal() -> None:
    """Install the filter, for this process and all it starts; nothing takes it off again."""
    at = {label: number for number, (label, *_) in enumerate(PROGRAM) if label}
    code = b"".join(
        struct.pack("HBBI", operation, *(0 if to is None else at[to] - number - 1 for to in (true, false)), operand)
        for number, (_, operation, operand, true, false) in enumerate(PROGRAM)
    )
    instructions = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(PROGRAM), ctypes.addressof(instructions)), 16)
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_seccomp, filtered = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(set_seccomp, filtered, program, 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel takes no filter")


if __name__ == "__main__":
    seal()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
