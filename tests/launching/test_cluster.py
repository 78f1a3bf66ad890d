"""A cluster's settings: what the shipped files say, and that every mistake is answered, all of them together."""

import pytest
import yaml

from nvlm_train import cli
from nvlm_train.config.cluster import Cluster, Variable, seconds_of
from nvlm_train.config.cluster_file import compose_cluster
from nvlm_train.config.compose import compose, recipes_dir, sweep_words
from nvlm_train.errors import ConfigError

NAMES = sorted(path.stem for path in (recipes_dir() / "cluster").glob("*.yaml"))
FABRIC = ("NCCL_IB", "NCCL_SOCKET", "GLOO_SOCKET", "UCX", "NCCL_NET")


def wrong(name: str, *changes: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose_cluster(name, changes)
    return caught.value.problems


@pytest.mark.parametrize("name", NAMES)
def test_shipped_clusters_give_a_reason_for_each_variable_and_leave_the_fabric_to_the_site(name):
    cluster = compose_cluster(name, ())
    assert cluster.env and all(len(variable.why) > 10 for variable in cluster.env.values())
    assert all(variable.value is None for key, variable in cluster.env.items() if key.startswith(FABRIC))
    assert (cluster.partition, cluster.account, cluster.container.runtime, cluster.requeue) == (None, None, "none", True)
    assert len(NAMES) >= 3


def test_a_cluster_file_of_ones_own_and_words_over_it(tmp_path):
    file = tmp_path / "ours.yaml"
    env = {"NCCL_DEBUG": {"value": "WARN", "why": "reasons"}}
    file.write_text(yaml.safe_dump({"partition": "gpu", "time": "8:00:00", "env": env}))
    cluster = compose_cluster(str(file), ("time=30", "env.NCCL_DEBUG=INFO", "env.NCCL_IB_HCA=mlx5_0,mlx5_1", "launcher=srun", "qos=2026",
                                          "sbatch.switches=1", "sbatch.contiguous=null", "container.mounts=[/data,/a:/b:ro]"))
    assert (cluster.partition, cluster.time, cluster.launcher, cluster.sbatch, cluster.qos) == (
        "gpu", "30", "srun", {"switches": "1", "contiguous": None}, "2026")
    assert cluster.env["NCCL_DEBUG"] == Variable("INFO", "reasons")
    assert cluster.env["NCCL_IB_HCA"] == Variable("mlx5_0,mlx5_1")
    assert cluster.container.mounts == ("/data", "/a:/b:ro")


def test_a_run_knows_no_cluster():
    for words in (["cluster=dgx_h100"], ["cluster.time=30"]):
        with pytest.raises(ConfigError, match="belong to nvlm submit"):
            compose(["recipe=nvlm_d_tiny", *words])


@pytest.mark.parametrize(("changes", "sentence"), [
    (("partion=gpu",), "cluster.partion: unknown key; did you mean partition?"),
    (("container.imge=x",), "cluster.container.imge: unknown key; did you mean container.image?"),
    (("gpus_per_node=many",), "cluster.gpus_per_node: expected a whole number, got 'many'"),
    (("gpus_per_node=-1",), "cluster.gpus_per_node=-1 must be at least 0"),
    (("gpus_per_node=0",), "say how many ranks a node gets"),
    (("processes_per_node=9",), "processes_per_node=9 is more than cluster.gpus_per_node=8"),
    (("time=tomorrow",), "cluster.time=tomorrow: expected minutes, HH:MM:SS"),
    (("time=UNLIMITED",), "cluster.time=UNLIMITED: expected minutes"),
    (("time=5", "signal_s=300"), "is 300 s and the run would be asked to stop cluster.signal_s=300 s before its end"),
    (("time=7-00", "signal_s=70000"), "cluster.signal_s=70000 is more than the 65535 s"),
    (("exclusive=false", "cpus_per_process=null"), "cluster.exclusive=false needs cluster.cpus_per_process"),
    (("memory=lots",), "cluster.memory=lots: expected a number of megabytes"),
    (("launcher=torchrn",), "cluster.launcher: 'torchrn' is none of torchrun, srun; did you mean torchrun?"),
    (("container.runtime=docker", "container.image=x"), "cluster.container.runtime: 'docker' is none of none, pyxis, apptainer"),
    (("container.runtime=pyxis",), "needs cluster.container.image"),
    (("container.image=/x.sqsh",), "needs cluster.container.runtime"),
    (("container.mounts=[data]",), "'data': expected /folder"),
    (("env.HF_TOKEN=abc",), "no secret may enter them"),
    (("env.9LIVES=1",), "no environment variable can have this name"),
    (("sbatch.nodes=4",), "nvlm submit sets --nodes itself"),
    (("sbatch.-N=4",), "cluster.sbatch.-N: no option of sbatch"),
    (("comment=\"two\nlines\"",), "must be one line"),
])
def test_wrong_settings(changes, sentence):
    (problem,) = wrong("dgx_h100", *changes)
    assert sentence in problem


def test_all_mistakes_are_told_together_and_unknown_clusters_get_a_suggestion(tmp_path):
    assert len(wrong("dgx_h100", "time=soon", "memory=lots", "launcher=mpirun")) == 3
    assert "there is no such cluster; did you mean dgx_h100? (known: dgx_h100, " in wrong("dgx_h10")[0]
    assert "there is no such file" in wrong(str(tmp_path / "absent.yaml"))[0]
    (tmp_path / "list.yaml").write_text("- a\n")
    assert "must hold settings" in wrong(str(tmp_path / "list.yaml"))[0]
    (tmp_path / "code.yaml").write_text("python: ${run:rm}\n")
    assert "run is refused" in wrong(str(tmp_path / "code.yaml"))[0]


@pytest.mark.parametrize(("text", "seconds"), [
    ("30", 1800), ("30:15", 1815), ("1:30:15", 5415), ("2-0", 172_800), ("1-2:30", 95_400), ("1-02:30:15", 95_415),
    ("", None), ("1:2:3:4", None), ("-5", None), ("UNLIMITED", None), ("1.5", None),
])
def test_time_limits_as_slurm_reads_them(text, seconds):
    assert seconds_of(text) == seconds


def test_values_of_a_sweep():
    assert sweep_words({}) == []
    assert sweep_words({"train.seed": "range(1,3)", "train.schedule": "cosine,constant"}) == [
        ("train.seed=1", "train.schedule=cosine"), ("train.seed=1", "train.schedule=constant"),
        ("train.seed=2", "train.schedule=cosine"), ("train.seed=2", "train.schedule=constant")]
    assert sweep_words({"train.trainable": "[connector],[connector,language]"}) == [
        ("train.trainable=[connector]",), ("train.trainable=[connector,language]",)]
    with pytest.raises(ConfigError, match="cannot be read as values"):
        sweep_words({"train.seed": "range(1,"})


def test_defaults_are_a_usable_cluster():
    assert Cluster().ranks_per_node == 8 and cli.VERBS["submit"].flags == ("--dry-run",)
