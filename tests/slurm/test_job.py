"""What may stand in the description of a job."""

from __future__ import annotations

import pytest

from clip_med.config import ConfigError, validate
from slurm.job import JobSpec


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"partition": "a b"}, "partition must be one word"),
        ({"partition": "$(touch x)"}, "partition must be one word"),
        ({"account": "a\n#SBATCH --uid=0"}, "account must be one word"),
        ({"qos": ""}, "qos must be one word"),
        ({"constraint": "a`b`"}, "constraint must be one word"),
        ({"mail_user": "a@b;rm"}, "mail_user must be one word"),
        ({"time": "1 day"}, "HH:MM:SS"),
        ({"options": ["--exclusive"]}, "without dashes"),
        ({"options": ["comment=a b"]}, "NAME=VALUE"),
        ({"environment": ["NOVALUE"]}, "NAME=VALUE"),
        ({"environment": ["A=1\nrm"]}, "NAME=VALUE"),
        ({"environment": ["A$(x)=1"]}, "NAME=VALUE"),
        ({"setup": ["module load cuda\nrm"]}, "each entry is one line"),
        ({"container": "a\nb"}, "container must be one line"),
        ({"nodes": 0}, "nodes = 0"),
        ({"warn_seconds": 5}, "warn_seconds = 5"),
        ({"signal": "KILL"}, "valid: TERM, USR1, USR2"),
        ({"partitoin": "gpu"}, "did you mean 'partition'"),
    ],
)
def test_what_would_break_the_script_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate(JobSpec, values)


def test_slurms_own_signs_are_words() -> None:
    spec = validate(JobSpec, {"constraint": "[rack1*2&rack2*2]|(a100|h100)", "time": "2-12:00:00", "qos": "high+x"})
    assert spec.constraint == "[rack1*2&rack2*2]|(a100|h100)"


def test_there_is_a_process_for_each_gpu_else_for_each_task() -> None:
    assert JobSpec(nodes=2, gpus_per_node=4, tasks_per_node=3).ranks == 8
    assert JobSpec(nodes=2, tasks_per_node=3).ranks == 6
