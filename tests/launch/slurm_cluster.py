"""A real Slurm on one machine: munged, slurmctld and two slurmd with names of their own, all in a temporary folder."""

import getpass
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
INSTALL = "apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge"
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
FREEZER = Path("/sys/fs/cgroup/freezer")    # of cgroup v1

# Timers are short where they only make a test wait. SlurmdTimeout is how long a node may be silent before its jobs are requeued.
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
MpiDefault=none
SwitchType=switch/none
ProctrackType={proctrack}
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
SlurmdParameters=config_overrides
FirstJobId={first_job}
JobRequeue=1
ReturnToService=2
KillWait=5
SlurmdTimeout=10
SlurmctldTimeout=10
InactiveLimit=0
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=1000
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=1000
PartitionName=main Nodes={nodes[0]},{nodes[1]} Default=YES MaxTime=60 OverTimeLimit=0 State=UP
"""


def missing() -> str | None:
    """Why there can be no Slurm here; None if there can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    return f"no {', '.join(absent)} here: {INSTALL}" if absent else None


class SlurmCluster:
    """Context manager. Leaves no process behind; its folder stays only if `keep` is set (for its logs)."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="nvlm-slurm-"))
        self.keep = False
        # Two such clusters may stand on one machine, and a node's control groups are named after it.
        tag = uuid.uuid4().hex[:6]
        self.nodes = [f"left-{tag}", f"right-{tag}"]
        self.env = {**os.environ, "PATH": PATH, "SLURM_CONF": str(self.folder / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen] = {}
        # Tests may be killed; this process then sees the end of its input, and does what __exit__ could not.
        self._heir = subprocess.Popen([sys.executable, __file__, self.folder, *self.nodes], stdin=subprocess.PIPE, start_new_session=True)

    def __enter__(self) -> Self:
        try:
            self._configure()
            self._start("munged", "munged", "--foreground", "--force", f"--socket={self.folder}/munge.sock",
                        f"--key-file={self.folder}/munge.key", f"--pid-file={self.folder}/munge.pid",
                        f"--log-file={self.folder}/munged.log", f"--seed-file={self.folder}/munge.seed")
            until(lambda: (self.folder / "munge.sock").exists(), 20, "munged")
            self._start("slurmctld", "slurmctld", "-D")
            for node in self.nodes:
                self.start_node(node)
            self.wait_for_idle_nodes()
        except BaseException:
            self.keep = True
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        if "slurmctld" in self._daemons:
            subprocess.run(["scancel", "--signal=KILL", f"--user={getpass.getuser()}"], env=self.env, check=False, timeout=20)
        for daemon in reversed(self._daemons.values()):
            daemon.kill()
            daemon.wait(20)
        clear_away(self.folder, self.nodes)
        self._heir.communicate(timeout=60)
        if not self.keep:
            shutil.rmtree(self.folder)

    def _configure(self) -> None:
        for name in ("state", *self.nodes):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(random.randbytes(1024))
        key.chmod(0o400)
        # What production clusters use signals only the tasks themselves, not what they start: worth having where it can be had.
        cgroups = os.geteuid() == 0 and os.access(FREEZER, os.W_OK)
        (self.folder / "cgroup.conf").write_text("CgroupMountpoint=/sys/fs/cgroup\nCgroupPlugin=cgroup/v1\n")
        (self.folder / "slurm.conf").write_text(CONFIG.format(
            host=socket.gethostname().partition(".")[0], user=getpass.getuser(), folder=self.folder, nodes=self.nodes, ports=_free_ports(3),
            proctrack="proctrack/cgroup" if cgroups else "proctrack/linuxproc", first_job=random.randrange(1, 60_000)))

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(command, stdout=out, stderr=out, env=self.env, start_new_session=True)

    def start_node(self, node: str) -> None:
        self._start(node, "slurmd", "-D", "-N", node)

    def wait_for_idle_nodes(self) -> None:
        until(lambda: self.ask("sinfo", "-h", "-o", "%T") == "idle", 60, "idle nodes")

    def kill_node(self, node: str) -> None:
        """As if the power had failed: the daemon, its job steps, and everything that they run."""
        self._daemons.pop(node).kill()
        _end(lambda: self.processes(node), f"node {node}")

    def processes(self, node: str | None = None) -> list[int]:
        """Living processes of this cluster, its jobs' included; those of one node only if it is named."""
        return _processes(self.folder, [node] if node else self.nodes, f"SLURMD_NODENAME={node}" if node else "")

    def ask(self, *command: str, folder: Path | None = None) -> str:
        """What a command of Slurm's prints. Raises AssertionError with what it complains about."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60, check=False, cwd=folder)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
        return done.stdout.strip()

    def end_jobs(self) -> None:
        """Whatever a test has left in the queue or on the nodes."""
        self.ask("scancel", f"--user={getpass.getuser()}")
        until(lambda: not self.ask("squeue", "-h"), 60, lambda: f"an empty queue: {self.ask('squeue')}")

    def job(self, number: str) -> dict[str, str]:
        """Slurm's facts about a job: JobState, Restarts, ExitCode, Reason, …"""
        return dict(re.findall(r"(\w+)=(\S*)", self.ask("scontrol", "show", "job", number)))

    def wait_for_state(self, number: str, *states: str, timeout: float) -> str:
        until(lambda: self.job(number)["JobState"] in states, timeout, lambda: f"{states}: {self.job(number)}")
        return self.job(number)["JobState"]

    def lift_hold(self, number: str) -> float:
        """Start a requeued job now instead of after Slurm's two minutes; returns the seconds that were left of them."""
        until(lambda: (now := self.job(number))["JobState"] == "PENDING" and now["Reason"] == "BeginTime", 60,
              lambda: f"the hold: {self.job(number)}")
        # What the hold is for: a job that starts in the second in which its last life was revoked is revoked too.
        time.sleep(2)
        begin = time.mktime(time.strptime(self.job(number)["StartTime"], "%Y-%m-%dT%H:%M:%S"))
        left = begin - time.time()
        self.ask("scontrol", "update", f"JobId={number}", "StartTime=now")
        return max(left, 0.0)


def until(done: Callable[[], object], seconds: float, what: str | Callable[[], str]) -> None:
    """Wait; AssertionError when it takes too long."""
    end = time.monotonic() + seconds
    while True:
        try:
            if done():
                return
            problem = ""
        except AssertionError as error:
            problem = f" ({error})"
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what() if callable(what) else what}{problem}"
        time.sleep(0.1)


def clear_away(folder: Path, nodes: Sequence[str]) -> None:
    """End what still runs of a cluster, and remove its control groups. AssertionError if something stays."""
    _end(lambda: _processes(folder, nodes), "the cluster")
    for node in nodes:
        until(lambda top=FREEZER / f"slurm_{node}": _remove_groups(top), 20, "the end of the control groups")


def _processes(folder: Path, nodes: Sequence[str], also: str = "") -> list[int]:
    """By their environment, which names the cluster's configuration; or, since a job step's daemon writes its title over its own,
    by the log of a node that they have open. also: what an environment must hold beside that."""
    mark, logs = f"SLURM_CONF={folder}/slurm.conf", {f"{folder}/{node}.log" for node in nodes}

    def belongs(pid: int) -> bool:
        environment = _environment(pid)
        return (mark in environment and (not also or also in environment)) or not logs.isdisjoint(_open_files(pid))

    return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if pid != os.getpid() and belongs(pid)]


def _end(processes: Callable[[], list[int]], whose: str) -> None:
    """Kill until none is left: a shell starts a process while the first list is worked through."""
    def gone() -> bool:
        for pid in (left := processes()):
            _kill(pid)
        return not left

    until(gone, 20, lambda: f"the end of all processes of {whose}: {processes()}")


def _environment(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:     # gone
        return []


def _open_files(pid: int) -> list[str]:
    try:
        return [os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return []


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _remove_groups(top: Path) -> bool:
    """Whether nothing is left; a group stays busy for a moment after its last process has gone."""
    try:
        for group in sorted([top, *(path for path in top.rglob("*") if path.is_dir())], reverse=True):
            group.rmdir()
    except OSError:
        pass
    return not top.exists()


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


if __name__ == "__main__":
    sys.stdin.read()
    clear_away(Path(sys.argv[1]), sys.argv[2:])
