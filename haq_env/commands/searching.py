"""The way of a search that was asked for: environment, folder, search, conclusion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.markup import escape

from haq_env.cost import UNITS

if TYPE_CHECKING:
    from rich.console import Console

    from haq_env.agents.transfer import Source
    from haq_env.commands.search import Search
    from haq_env.env import QuantizationEnv
    from haq_env.search.history import History


def search(settings: Search, console: Console) -> None:
    """Search, finetune, report, as the settings say."""
    import torch

    from haq_env.agents.transfer import Source
    from haq_env.commands.environment import environment_of
    from haq_env.evaluation.fingerprint import digest
    from haq_env.run_folder import made_of, open_folder
    from haq_env.search.folder import sole_owner

    settings.check()
    torch.set_num_threads(settings.threads)
    source = None if settings.transfer_from is None else Source.open(settings.transfer_from)
    env = environment_of(settings, source)
    decides = {**settings.record(), **made_of(env.task, settings.checkpoint)}
    if source is not None:  # a resumed run goes on from the same agent
        decides["transferred"] = digest([("agent", source.state.read_bytes())])
    if settings.overwrite:  # a network that cannot be used must not cost an earlier run
        env.task.trained().bench  # noqa: B018
    with sole_owner(settings.folder):
        open_folder(settings.folder, decides, resume=settings.resume, overwrite=settings.overwrite)
        _search(settings, env, source, console)


def _search(
    settings: Search, env: QuantizationEnv, source: Source | None, console: Console
) -> None:
    from haq_env.commands.conclusion import conclude

    task = env.task
    budget = task.budget
    console.print(
        f"[bold]{escape(settings.env_id)}[/bold]: {len(task.layers)} layers of "
        f"{escape(settings.network or task.layers.network)} on "
        f"{escape(settings.dataset or str(task.settings['dataset']))}, quantizer "
        f"{task.settings['quantizer']}, {len(task.space.steps)} decisions, {budget.metric} on "
        f"{escape(task.costs.hardware)} at most {budget.limit:.4g} {UNITS[budget.metric]} "
        f"({budget.ratio:.3f} of 8 bits), searched by {settings.algo}",
        soft_wrap=True,
    )
    if task.layers.uncounted:
        console.print(task.layers.uncounted_line, markup=False, soft_wrap=True)
    history = _found(settings, env, source, console)
    if not history:
        raise KeyboardInterrupt  # before the first evaluation was finished: nothing was found
    if len(history) <= settings.episodes:
        why = "Stopped" if history.interrupted else f"{settings.algo} was done"
        more = "; --resume goes on from here" if history.interrupted else ""
        console.print(f"{why} after {len(history) - 1} episodes{more}.")
    conclude(settings, task, history, console)


def _found(
    settings: Search, env: QuantizationEnv, source: Source | None, console: Console
) -> History:
    from haq_env.agents.run import search_with_agent
    from haq_env.agents.transfer import apply_agent
    from haq_env.search.folder import LOG
    from haq_env.search.progress import SearchProgress
    from haq_env.search.run import search_with_baseline

    if source is not None and not settings.episodes:
        return apply_agent(source, env, settings.agent_settings(), settings.folder / LOG)
    kept: dict[str, Any] = {"folder": settings.folder, "resume": settings.resume}
    learned: dict[str, Any] = {}
    if source is not None:
        learned = {"prepare": source.warm_start, "warmup": 0}
    with SearchProgress(env.task, settings.episodes, console) as progress:
        if settings.is_baseline:
            return search_with_baseline(
                env.task,
                settings.algo,
                settings.episodes + 1,
                settings.seed,
                **kept,
                progress=progress,
            )
        return search_with_agent(
            env,
            settings.algorithm,
            settings.episodes,
            settings.seed,
            **kept,
            progress=progress,
            settings=settings.agent_settings(),
            **learned,
        )
