"""How a process finds its job, and what it says when it cannot: in one message, early, with what to do."""

import socket
import time

import pytest

from nvlm_train.errors import ConfigError, JobError
from nvlm_train.parallel.job import join, place_of
from nvlm_train.parallel.srun import FIRST_PORT, PORTS, adopt_srun, first_host, port_of

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
SRUN = {"SLURM_JOB_ID": "1234", "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1",
        "SLURM_STEP_NODELIST": "dgx[003-004]", "SLURM_NTASKS": "16"}


def test_torchruns_variables_are_read():
    place = place_of({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "3", "TORCHELASTIC_USE_AGENT_STORE": "True"})
    assert (place.rank, place.world, place.local_rank, place.host, place.port) == (1, 2, 1, "127.0.0.1", 29500)
    assert place.attempt == "3" and place.agent


def test_alone_there_is_a_world_of_one():
    assert place_of({}).world == place_of({"WORLD_SIZE": "1"}).world == 1


@pytest.mark.parametrize(("change", "said"), [
    ({"RANK": "2"}, "RANK=2 does not lie in WORLD_SIZE=2"),
    ({"RANK": "-1"}, "RANK=-1 is no whole number"),
    ({"LOCAL_RANK": "2"}, "LOCAL_RANK=2 does not lie in LOCAL_WORLD_SIZE=2"),
    ({"WORLD_SIZE": None}, "RANK=1 is set, but WORLD_SIZE is not"),
    ({"MASTER_ADDR": None, "MASTER_PORT": None}, "RANK=1 is set, but MASTER_ADDR, MASTER_PORT is not"),
    ({"RANK": None}, "WORLD_SIZE=2 is set, but RANK is not"),
])
def test_contradictory_variables_are_named(change, said):
    with pytest.raises(ConfigError, match="torchrun or srun") as told:
        place_of({name: value for name, value in {**TORCHRUN, **change}.items() if value is not None})
    assert said in str(told.value)


def test_srun_names_its_tasks():
    environment = dict(SRUN)
    assert adopt_srun(environment)
    assert {name: environment[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")} == {
        "RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "MASTER_ADDR": "dgx003"}
    assert environment["MASTER_PORT"] == str(port_of("1234", "2"))
    place = place_of(environment)
    assert (place.rank, place.world, place.agent) == (9, 16, False)


@pytest.mark.parametrize("environment", [
    {**SRUN, **TORCHRUN},                                                       # torchrun as srun's single task a node
    {**SRUN, "SLURM_STEP_NUM_TASKS": "1"},                                      # srun of one task; the shell of salloc
    {name: value for name, value in SRUN.items() if "STEP" not in name},        # a batch script: SLURM_PROCID=0, SLURM_NTASKS=16
    {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"},                                 # a shell under salloc
], ids=["torchrun", "one task", "batch", "salloc"])
def test_what_srun_did_not_start_as_one_of_many_stays_as_it_is(environment):
    before = dict(environment)
    assert not adopt_srun(environment)
    assert environment == before


@pytest.mark.parametrize(("hosts", "first"), [
    ("dgx003", "dgx003"), ("dgx[003-016,20],login1", "dgx003"), ("a,b", "a"), ("r[1-2]n[01-04]", "r1n01"), ("n[3,5-6]x", "n3x"),
])
def test_first_host_of_slurms_lists(hosts, first):
    assert first_host(hosts) == first


def test_ports_differ_between_jobs_and_steps():
    ports = {port_of(str(job), str(step)) for job in range(100, 200) for step in range(4)}
    assert len(ports) == 400 and FIRST_PORT <= min(ports) <= max(ports) < FIRST_PORT + PORTS < 32_768


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_an_absent_rendezvous_is_named_with_the_time_waited():
    port, began = _free_port(), time.monotonic()
    with pytest.raises(JobError, match=f"no rendezvous at 127.0.0.1:{port} after 1 s .*refused.*rank 0 must run"):
        join(1, {**TORCHRUN, "MASTER_PORT": str(port)})
    assert time.monotonic() - began < 10


def test_a_taken_port_is_named():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = str(other.getsockname()[1])
        with pytest.raises(JobError, match=f"port {port} of 127.0.0.1 is taken .*MASTER_PORT"):
            join(5, {**TORCHRUN, "RANK": "0", "MASTER_PORT": port})


def test_the_ranks_of_a_job_meet_in_its_store():
    environment = {**TORCHRUN, "MASTER_PORT": str(_free_port())}
    first = join(20, {**environment, "RANK": "0"})
    second = join(20, environment)
    first.store.set("word", "hello")
    assert second.store.get("word") == second.second_store(5).get("word") == b"hello"
    again = join(20, {**environment, "TORCHELASTIC_RESTART_COUNT": "1"})     # after a restart nothing of before is left
    assert not again.store.check(["word"])
