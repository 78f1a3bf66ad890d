"""The process that a program runs in. A file of its own, run with `-I -S`: it imports nothing but the standard library.

Reads an order (JSON) from its input, puts up the walls, runs the program, and writes {"token", "note"} to the pipe whose number is
its argument. With `--try` it only puts up the kernel's wall, and its status says whether that stood.
"""

import ctypes
import json
import os
import resource
import signal
import struct
import sys

MOUNT_SETATTR = 442                 # the same number on every architecture
AT_FDCWD, AT_RECURSIVE, RDONLY = -100, 0x8000, 1
CLONE_NEWUSER = 0x10000000
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
REFUSED = ("os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.kill", "os.killpg", "os.remove", "os.rename", "os.rmdir",
           "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.chflags", "os.utime", "os.putenv",
           "os.setxattr", "os.removexattr", "os.listxattr", "os.chroot", "os.startfile", "pty.", "subprocess.", "socket.", "ctypes.",
           "shutil.", "tempfile.", "fcntl.", "signal.pthread_kill", "syslog.", "webbrowser.", "urllib.", "ftplib.", "smtplib.",
           "http.", "resource.setrlimit", "resource.prlimit", "sqlite3.", "mmap.", "sys.addaudithook")
NO_MODULES = ("ctypes", "_ctypes", "_posixsubprocess", "_testcapi", "cffi", "pip")


def wall_in(folder: str) -> None:
    """Everything read-only, `folder` empty and in memory, and no right left to change that. Raises OSError.

    The process must be in a user, mount, network and process namespace of its own, as root of it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _must(libc.syscall(MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, struct.pack("QQQQ", RDONLY, 0, 0, 0), 32))
    _must(libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=1m"))
    os.chdir(folder)
    # A further user namespace has no rights over these mounts.
    _must(libc.unshare(CLONE_NEWUSER))


def _must(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def limit(order: dict) -> None:
    """The operating system's limits; of CPU seconds the signal comes first, and a second later the end."""
    for kind, soft, hard in ((resource.RLIMIT_CPU, order["cpu_s"], order["cpu_s"] + 1),
                             (resource.RLIMIT_AS, order["memory"], order["memory"]), (resource.RLIMIT_FSIZE, order["file"], order["file"]),
                             (resource.RLIMIT_NOFILE, order["open_files"], order["open_files"]),
                             (resource.RLIMIT_NPROC, order["processes"], order["processes"]), (resource.RLIMIT_CORE, 0, 0)):
        resource.setrlimit(kind, (soft, hard))
    # Python ignores this one, and a file at its limit would only be an error.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)


def refuse(event: str, arguments: tuple) -> None:
    """An audit hook: whatever would change something outside the program raises PermissionError in it."""
    if event == "open":
        _, mode, flags = arguments
        if (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & WRITING):
            raise PermissionError("a program under test may not write files")
    elif event == "import" and arguments[0].partition(".")[0] in NO_MODULES:
        raise PermissionError(f"a program under test may not import {arguments[0]}")
    elif event.startswith(REFUSED):
        raise PermissionError(f"a program under test may not call {event}")


def _wait_for_another() -> None:
    """Go on as a child. The first process of a namespace gets no signal from the kernel's CPU limit; it stays, waits, and takes all
    others with it when it ends."""
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os._exit(code if code >= 0 else 128 - code)


def verdict(program: str) -> str:
    """"passed", or what the program raised."""
    try:
        exec(compile(program, "<program>", "exec", dont_inherit=True), {})   # noqa: S102 (that is what this process is for)
    except MemoryError:
        return "out of memory"
    except BaseException as error:  # noqa: BLE001 (SystemExit and KeyboardInterrupt are failures too)
        return f"{type(error).__name__}: {error}"[:200]
    return "passed"


def main(argument: str) -> None:
    if argument == "--try":
        wall_in(os.getcwd() if os.getcwd() != "/" else "/tmp")
        return
    pipe = int(argument)
    order = json.loads(sys.stdin.buffer.read().decode("utf-8", "surrogatepass"))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    if order["walls"]:
        wall_in(os.getcwd())
        _wait_for_another()
    limit(order)
    sys.dont_write_bytecode = True
    write, leave, encode, token = os.write, os._exit, json.dumps, order["token"]
    for module in ("_posixsubprocess", "ctypes", "_ctypes"):
        sys.modules.pop(module, None)
    sys.addaudithook(refuse)
    note = verdict(order["program"])
    write(pipe, encode({"token": token, "note": note}).encode())
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1])
