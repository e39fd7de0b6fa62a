from manu_jax import progress


def test_progress_logs_lines_without_a_terminal(caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with progress.Progress("scoring", 3) as bar:
        for _ in range(3):
            bar.advance()
    assert "scoring: 2 of 3" in caplog.text and "s left" in caplog.text


def test_progress_counts_from_where_a_killed_run_was(caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with progress.Progress("training", 10, done=4) as bar:
        bar.advance(note="loss 0.5")
    assert "training: 5 of 10" in caplog.text and "loss 0.5" in caplog.text
