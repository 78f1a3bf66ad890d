"""torchrun's own restarts, and two "nodes" on one machine: the losses are those of the undisturbed run, to the last bit."""

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from nvlm_train.training.status import read_next, read_status
from tests.engine.launching import ROOT, free_port, survivors_of
from tests.faults.jobs import Job, rows, start, wait_for

pytestmark = [pytest.mark.full, pytest.mark.distributed]

STEPS = 8
SETTINGS = ("recipe=nvlm_d_tiny", "stage=all", f"train.steps={STEPS}", "train.warmup_steps=2", "train.global_batch=8",
            "run.save_every=2", "run.eval_batches=1", "run.examples=0", "run.timeout_s=120")


def curve(run_dir: Path) -> list[tuple]:
    return [tuple(row[name] for name in ("stage", "step", "loss", "grad_norm", "lr", "tokens")) for row in rows(run_dir)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> list[tuple]:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    start(run_dir, *SETTINGS, ranks=2).wait(600)
    return curve(run_dir)


def workers(launcher: int) -> list[psutil.Process]:
    """torchrun's ranks, in their order."""
    found = [child for child in psutil.Process(launcher).children() if "nvlm_train" in child.cmdline()]
    return sorted(found, key=lambda child: int(child.environ()["RANK"]))


@contextmanager
def processes(command: list[str], log: Path) -> Iterator[Job]:
    """A launcher and what it starts; none of them is left behind."""
    name, value = "NVLM_TEST_LAUNCH", uuid.uuid4().hex
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "PYTHON": sys.executable, name: value}
    with log.open("wb") as out:
        job = Job(subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, env=variables), log)
    try:
        yield job
        assert not survivors_of(f"{name}={value}"), "processes are left"
    finally:
        for pid in survivors_of(f"{name}={value}", patience=0):
            os.kill(pid, signal.SIGKILL)
        job.process.wait(20)


def test_torchrun_restarts_killed_ranks_and_nothing_changes(undisturbed, tmp_path):
    """Three kills, of either rank, in either stage, one before the first checkpoint: every restart comes up."""
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "3",
               "-m", "nvlm_train", "train", *SETTINGS, f"run.dir={run_dir}"]
    with processes(command, tmp_path / "log") as job:
        for attempt, (rank, stage, step) in enumerate([(1, "pretrain", 1), (0, "pretrain", 5), (1, "sft", 3)], start=1):
            wait_for(job, run_dir, stage, step, timeout=400)
            workers(job.process.pid)[rank].kill()
            while restart_of(job) < attempt:
                assert job.process.poll() is None, f"rank {rank}, {stage} {step}:\n{job.log.read_text()[-3000:]}"
                time.sleep(0.1)
        job.wait(400)
    assert curve(run_dir) == undisturbed
    now = read_status(run_dir)
    assert (now.state, now.step, read_next(run_dir)) == ("finished", STEPS, "done")
    assert now.restarts_without_progress == 0


def restart_of(job: Job) -> int:
    """TORCHELASTIC_RESTART_COUNT of the ranks that run now."""
    try:
        return max((int(child.environ()["TORCHELASTIC_RESTART_COUNT"]) for child in workers(job.process.pid)), default=0)
    except (psutil.Error, KeyError):
        return 0


def test_a_job_that_torchrun_restarts_in_vain_is_stopped(tmp_path):
    """One restart from the same step is allowed; the next one is refused."""
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "--max-restarts", "2",
               "-m", "nvlm_train", "train", *SETTINGS, f"run.dir={run_dir}", "run.max_restarts=1",
               "data.blend.tiny.path=/nonexistent/shards"]
    with processes(command, tmp_path / "log") as job:
        assert job.process.wait(500) == 1
    now = read_status(run_dir)
    assert (now.state, now.restarts_without_progress, read_next(run_dir)) == ("stuck", 2, "stop")


# Words before a launcher's command, for each node.
Nodes = list[tuple[str, ...]]


@contextmanager
def loopback(folder: Path) -> Iterator[tuple[Nodes, str]]:
    """Both nodes are this machine, as in two terminals."""
    yield [(), ()], "127.0.0.1"


@contextmanager
def namespaces(folder: Path) -> Iterator[tuple[Nodes, str]]:
    """Two network stacks with host names of their own, joined by a cable: neither sees the other's loopback."""
    tag = uuid.uuid4().hex[:6]
    names, addresses = [f"nvlm-{tag}-{end}" for end in "ab"], ["10.213.7.1", "10.213.7.2"]
    hosts = folder / "hosts"
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for address, name in zip(addresses, names)))

    def ip(*words: str, check: bool = True) -> None:
        subprocess.run(["ip", *words], check=check, capture_output=True, timeout=20)

    with ExitStack() as left:
        for name in names:
            ip("netns", "add", name)
            left.callback(ip, "netns", "del", name, check=False)
        cable = [f"nv{tag}{end}" for end in "ab"]
        ip("link", "add", cable[0], "netns", names[0], "type", "veth", "peer", "name", cable[1], "netns", names[1])
        for name, address, end in zip(names, addresses, cable):
            for words in (("addr", "add", f"{address}/24", "dev", end), ("link", "set", end, "up"), ("link", "set", "lo", "up")):
                ip("-netns", name, *words)
        inside = 'hostname "$0"; mount --bind "$1" /etc/hosts; shift; exec "$@"'
        yield [("ip", "netns", "exec", name, "unshare", "--uts", "--mount", "sh", "-ec", inside, name, str(hosts))
               for name in names], names[0]


def why_no_namespaces() -> str | None:
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        return "network namespaces need root, ip and unshare"
    name = f"nvlm-{uuid.uuid4().hex[:6]}"
    if subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True).returncode:
        return "this kernel, or the container around us, refuses network namespaces"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


@pytest.mark.parametrize("network", [loopback, namespaces])
def test_two_nodes_on_one_machine(undisturbed, tmp_path, network):
    """The same command on both, launch/multinode.sh; rank 1 dies, both launchers end, the same commands again go on."""
    if network is namespaces and (reason := why_no_namespaces()):
        pytest.skip(reason)
    run_dir = tmp_path / "run"
    with network(tmp_path) as (nodes, head):
        def launch(held: ExitStack) -> list[Job]:
            command = [str(ROOT / "launch" / "multinode.sh"), "2", "1", f"{head}:{free_port()}", *SETTINGS, f"run.dir={run_dir}"]
            return [held.enter_context(processes([*inside, *command], tmp_path / f"{number}-{time.monotonic_ns()}.log"))
                    for number, inside in enumerate(nodes)]

        with ExitStack() as held:
            first, second = launch(held)
            wait_for(first, run_dir, "pretrain", 5, timeout=400)
            by_rank = {int(child.environ()["RANK"]): child for job in (first, second) for child in workers(job.process.pid)}
            by_rank[1].kill()
            assert first.process.wait(120) != 0 and second.process.wait(120) != 0
        with ExitStack() as held:
            for job in launch(held):
                job.wait(600)
    assert curve(run_dir) == undisturbed
    assert read_status(run_dir).state == "finished"
