"""The environment that a search was asked for, checked before anything is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from haq_env.agents.methods import check_env
from haq_env.errors import InputError
from haq_env.quantization import QUANTIZERS

if TYPE_CHECKING:
    from haq_env.agents.transfer import Source
    from haq_env.commands.search import Search
    from haq_env.env import QuantizationEnv


def environment_of(settings: Search, source: Source | None) -> QuantizationEnv:
    """Make the environment of a search, and see that everything given fits it.

    Args:
        settings: of the command.
        source: the finished run whose agent goes on here, if one does.

    Raises:
        InputError: something cannot be used, or does not fit the rest.
    """
    import torch

    from haq_env.make import make_env
    from haq_env.residual import ResidualEnv

    learned = {} if source is None else {"scales": source.scales}
    env = make_env(settings.env_id, **settings.task_settings(), **learned)
    if isinstance(env, ResidualEnv):
        env.prior_seed = settings.seed
    if not settings.is_baseline:
        check_env(settings.algo, env)
    if source is not None:
        ours = settings.algorithm == source.algorithm == "haq-ddpg"
        if ours and source.settings.get("haq") != settings.haq:
            raise InputError(
                f"the agent in {settings.transfer_from} has learned with --haq "
                f"{source.settings.get('haq')}: give that, not --haq {settings.haq}."
            )
        source.check(settings.algorithm, env, settings.agent_settings())
    if not env.task.is_trained:
        raise InputError(
            f"{settings.env} has an evaluator of its own ({type(env.task.evaluator).__name__}) and "
            "no network for a final finetuning: use haq_env.search_policy."
        )
    subject = env.task.trained().subject
    quantizer: Any = QUANTIZERS[subject.quantizer]
    learns = isinstance(quantizer, type) and issubclass(quantizer, torch.nn.Module)
    frozen = not isinstance(subject.network, str) and not any(
        parameter.requires_grad for parameter in subject.network.parameters()
    )
    if frozen and not learns and settings.final_steps:
        raise InputError(
            "the network has no parameter that requires a gradient, so nothing can be "
            "finetuned in the end: unfreeze it, or give --final-steps 0."
        )
    return env
