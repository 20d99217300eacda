"""``loralight tune``: a search for the settings with the best validation score, by Optuna.

A trial is a process of ``loralight train`` in a folder named after its settings. Optuna keeps the trials in a file of
the search's folder. So the same command in the same folder does only what is missing, also after a kill.
"""

import shlex
from importlib.util import find_spec
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from loralight import logs
from loralight.artifacts.lock import hold, release
from loralight.commands.processes import Processes
from loralight.config.composition import plain
from loralight.errors import InputError
from loralight.stopping import Stopped


def main(config: DictConfig) -> None:
    """The job that Hydra runs.

    Raises:
        InputError: a setting is wrong, before anything runs (``E-TUNE``, and the errors of `loralight train`); or no
            trial has a score (``E-TUNE``).
        Stopped: a signal ended the search.
    """
    if find_spec("optuna") is None:
        raise InputError("E-PACKAGE", 'loralight tune needs optuna: pip install "loralight[tune]"')
    from loralight.commands.tuning.plan import Plan
    from loralight.commands.tuning.proposals import Proposals
    from loralight.commands.tuning.search import Search

    logs.configure()  # after the imports, as Lightning's own adds handlers
    hydra, settings = HydraConfig.get(), plain(config)
    sources = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    folder, flags = Path(hydra.runtime.output_dir), [f"--config-dir={Path(one).absolute()}" for one in sources]
    plan = Plan(settings, folder)
    earlier = plan.earlier(settings["earlier"])
    folder.mkdir(parents=True, exist_ok=True)
    hold(folder)
    try:
        proposals = Proposals(folder, plan.space, mode=plan.mode)
        processes, seconds = Processes(settings["jobs"], flags), proposals.usual
        if seconds is None:
            with processes.busy(plan.first_words) as seconds_of_short_run:
                seconds = plan.seconds_of_trial(seconds_of_short_run)
        for run, point in earlier:
            proposals.add_earlier(run.folder.absolute(), point, run.summary["metrics"][plan.metric])
        search = Search(plan, proposals, processes, seconds=seconds)
        search.run()
    except Stopped as stopped:
        again = f"give the same command with hydra.run.dir={shlex.quote(str(folder))}, which does what is missing"
        raise Stopped(stopped.by, again) from None
    finally:
        release(folder)
    search.report()
