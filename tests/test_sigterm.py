"""SIGTERM, which announces that a machine will be taken, saves and stops; SIGKILL stops all."""

import json
import signal
import time

import pytest
from test_processes import finish, start, start_all

CONFIG = """
seed: 0
cache: null
mesh: {data: 2, fsdp: 2, tensor: 2}
data: {num_people: 6, num_celebrities: 4, num_general: 8, forget: 15}
model:
  vision: {image_size: 28, patch_size: 14, width: 16, num_layers: 2, num_heads: 2, num_neurons: 16}
  text: {width: 16, num_layers: 1, num_heads: 2, num_key_heads: 2, num_neurons: 32, context: 512}
train:
  {steps: 60, base_steps: 1, batch_size: 8, memory_gate: 0, checkpoint_every: 20,
   retrained: false}
method: {preset: gradient, rounds: 1, fade: null, keep_per_forget: null, alpha: 0.2}
evaluate: {new_tokens: 2, max_people: 2, resamples: 50, tasks: [generation], sets: [forget]}
audit: none
"""
AGAIN = "Give the same command again to go on from here."
SENTENCE = f"stopped. {AGAIN}"
STOPPED = 128 + signal.SIGTERM
KILLED_SECONDS = 30  # from the end of one process to that of the last


def command(folder, name, count):
    (folder / "config.yaml").write_text(CONFIG)
    place = ("-m", "manu_jax.run", "--config", folder / "config.yaml", "--output", folder / name)
    if count > 1:
        return start_all(count, folder, *place, "mesh.distributed=true")
    log = folder / f"{name}.log"
    return [start(place, log, 8)], [log]


def steps(folder, name):
    return sorted(
        int(path.name[5:]) for path in folder.glob(f"{name}/checkpoints/vanilla/step-????????")
    )


def wait_for_steps(folder, name, processes):
    """Wait until a training has saved once."""
    while not steps(folder, name):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)


def rows(folder, name):
    return json.loads((folder / name / "results.json").read_text())["rows"]


def assert_same(whole, found):
    """Rows of results are those of the undisturbed run."""
    for here, there in zip(whole, found, strict=True):
        for key, value in here.items():
            close = key in ("value", "low", "high") and value
            # Two processes add in another order than one.
            assert there[key] == (pytest.approx(value, abs=5e-3) if close else value), here


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The rows of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    finish(*command(folder, "run", 1))
    return rows(folder, "run")


@pytest.mark.slow
@pytest.mark.pods
@pytest.mark.parametrize("count", [1, 2])
def test_sigterm_to_one_process_saves_and_stops_all_and_the_rest_follows(tmp_path, whole, count):
    processes, outputs = command(tmp_path, "run", count)
    try:
        wait_for_steps(tmp_path, "run", processes)
        time.sleep(0.3)  # a step or two, so that it saves where it would not have
        processes[-1].send_signal(signal.SIGTERM)
        codes = [process.wait(60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    logs = [output.read_text() for output in outputs]
    assert codes == [STOPPED] * count, logs
    assert [line for line in logs[0].splitlines() if "stopped" in line] == [SENTENCE], logs
    assert not any("Traceback" in log for log in logs)
    assert any(step % 20 for step in steps(tmp_path, "run"))  # saved where it was
    finish(*command(tmp_path, "run", count))
    assert_same(whole, rows(tmp_path, "run"))


@pytest.mark.slow
@pytest.mark.pods
@pytest.mark.parametrize("which", [0, 1])
def test_a_process_that_is_killed_ends_the_other_within_seconds(tmp_path, whole, which):
    processes, outputs = command(tmp_path, "run", 2)
    try:
        wait_for_steps(tmp_path, "run", processes)
        processes[which].send_signal(signal.SIGKILL)
        begun = time.monotonic()
        code = processes[1 - which].wait(4 * KILLED_SECONDS)
        seconds = time.monotonic() - begun
    finally:
        for process in processes:
            process.kill()
    log = outputs[1 - which].read_text()
    assert code not in (0, None) and seconds < KILLED_SECONDS, (seconds, code, log)
    told = [line for line in log.splitlines() if line.startswith("error: ")]
    assert told == [f"error: process {which} is gone, and so all stop. {AGAIN}"], log
    assert code == 1 and "Traceback" not in log
    if which == 0:  # it holds the keys, so that JAX says more, before
        assert log.rstrip().endswith(told[0]), log
    finish(*command(tmp_path, "run", 2))
    assert_same(whole, rows(tmp_path, "run"))
