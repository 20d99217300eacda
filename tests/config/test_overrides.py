"""Words of the command line that loralight gives Hydra under other names."""

from loralight.config.overrides import with_launcher


def test_a_launcher_has_hydra_s_own_names() -> None:
    given = ["launcher=joblib", "launcher.n_jobs=3", "+launcher.x=1", "task.launcher=x", "hydra/launcher=joblib"]
    assert with_launcher(given, is_sweep=True) == [
        *("hydra/launcher=joblib", "hydra.launcher.n_jobs=3", "+hydra.launcher.x=1", "task.launcher=x"),
        "hydra/launcher=joblib",
    ]
