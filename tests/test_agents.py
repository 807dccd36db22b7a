"""Every agent plays the episodes that it is given, repeats itself, and survives a crash; HAQ's own
agent does what the paper says.
"""

import dataclasses
import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
import tyro
from scipy import stats

from haq_env.agents import ALGORITHMS
from haq_env.agents.algorithms import make_agent
from haq_env.agents.checkpoint import load_agent, save_agent
from haq_env.agents.haq_ddpg import FLAG, HaqDDPG, HaqView, truncated_normal
from haq_env.agents.haq_replay import PREVIOUS, HaqReplayBuffer
from haq_env.agents.haq_switches import HaqSwitches
from haq_env.agents.methods import methods
from haq_env.agents.run import search_with_agent
from haq_env.commands.search import Search
from haq_env.env import QuantizationEnv, action_to_bits
from haq_env.errors import InputError
from haq_env.evaluation import Evaluation
from haq_env.layers import Layer, LayerTable
from haq_env.make import make_task
from haq_env.search import SEARCH

NAMES = list(ALGORITHMS)
ON_POLICY = [name for name in NAMES if ALGORITHMS[name].family == "on"]
OFF_POLICY = [name for name in NAMES if ALGORITHMS[name].family == "off"]
DISCRETE = [name for name in NAMES if ALGORITHMS[name].actions == "discrete"]


@pytest.fixture(autouse=True)
def quiet_process():
    """One thread; agents seed global generators, so put them back."""
    threads, state = torch.get_num_threads(), np.random.get_state()  # noqa: NPY002
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        yield
    np.random.set_state(state)  # noqa: NPY002
    torch.set_num_threads(threads)


def conv(name: str, kind: str = "conv") -> Layer:
    channels = {"in_channels": 16, "out_channels": 16, "in_size": (8, 8), "out_size": (8, 8)}
    if kind == "depthwise":
        return Layer(name, kind, kernel=(3, 3), groups=16, **channels)
    return Layer(name, kind, **channels)


LAYERS = LayerTable(
    "toy",
    (
        Layer("stem", "conv", 3, 16, (3, 3), in_size=(8, 8), out_size=(8, 8), signed_input=True),
        conv("depthwise", "depthwise"),
        conv("pointwise"),
        Layer("classifier", "linear", 16, 10),
    ),
    (3, 8, 8),
)
STEPS = 4  # two layers are searched, weights and activations


class Additive:
    """Weights need their bits, activations hardly; counts how often it is asked."""

    float_accuracy = 100.0

    def __init__(self):
        self.evaluations = 0

    def evaluate(self, bits):
        self.evaluations += 1
        return Evaluation(float(100 - (np.array([8.0, 2.0]) * 2.0 ** (2 - bits)).sum()))


def toy(name: str = "ddpg", **settings) -> QuantizationEnv:
    """A problem of four decisions with the kind of actions that an algorithm takes."""
    settings = {"budget": 0.6, "hardware": "bismo-edge", **settings}
    task = make_task(torch.nn.Identity(), layers=LAYERS, evaluator=Additive(), **settings)
    assert len(task.space.steps) == STEPS or settings.get("quantizer") == "kmeans"
    return QuantizationEnv(task, actions=ALGORITHMS[name].actions)


def seen(history):
    """What a search has found, but for what depends on the clock."""
    return [
        (t.requested_w_bits, t.requested_a_bits, t.w_bits, t.a_bits, t.accuracy) for t in history
    ]


def agent_of(env=None, *, warmup=2, seed=0, **switches) -> HaqDDPG:
    return make_agent(
        "haq-ddpg", env or toy(), seed, warmup, switches=HaqSwitches(hidden=(16, 16), **switches)
    )


# -- every algorithm -----------------------------------------------------------------------------


@pytest.mark.parametrize("episodes", [1, 7, 10])
@pytest.mark.parametrize("name", NAMES)
def test_every_episode_is_one_evaluation_inside_the_budget_and_there_is_none_more(name, episodes):
    env = toy(name)
    shown = []
    history = search_with_agent(
        env, name, episodes, 0, warmup=3, progress=lambda h: shown.append(len(h))
    )
    assert len(history) == episodes + 1
    assert shown == list(range(1, episodes + 2))
    assert env.task.evaluator.evaluations == episodes + 1
    assert all(env.task.budget.fits(trial.bits) for trial in history)
    assert (history[0].bits == env.task.uniform()).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_repeats_itself_and_another_one_differs(name):
    first, again, other = (
        seen(search_with_agent(toy(name), name, 6, seed, warmup=2)) for seed in (0, 0, 1)
    )
    assert first == again
    assert first[1:] != other[1:]


@pytest.mark.parametrize("name", NAMES)
def test_actions_of_the_other_kind_are_one_clear_error_before_any_evaluation(name):
    other = "ppo" if name in DISCRETE else "dqn"
    env = toy(other)
    wanted, hint = ("discrete", "with") if name in DISCRETE else ("continuous", "without")
    message = f"{name} needs {wanted} actions, .*: take the id {hint} '-Discrete'"
    with pytest.raises(InputError, match=message):
        search_with_agent(env, name, 3, 0)
    assert env.task.evaluator.evaluations == 0


def test_an_unknown_algorithm_setting_or_number_of_episodes_costs_no_evaluation():
    env = toy()
    for arguments, settings, message in (
        (("pop", 3, 0), {}, "unknown algorithm 'pop'. Did you mean 'ppo'"),
        (("ppo", 0, 0), {}, "episodes must be 1 or more, not 0"),
        (("ppo", 3, 0), {"speed": 1}, "ppo has no setting 'speed'"),
        (
            ("ppo", 3, 0),
            {"n_steps": 6, "batch_size": 6},
            "n_steps of ppo must be a multiple of the 4 steps",
        ),
        (("sac", 3, 0), {"train_freq": 1}, "train_freq of sac must be (1, 'episode')"),
        (("td3", 3, 0), {"gamma": 0.9}, "gamma of td3: its memory sums whole episodes"),
        (("sac", 3, 0), {"learning_starts": 0}, "learning_starts of sac: give the episodes of"),
        (("haq-ddpg", 3, 0), {"gamma": 0.9}, "haq-ddpg has no setting 'gamma'"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            search_with_agent(env, *arguments, settings=settings)
    assert env.task.evaluator.evaluations == 0


def test_a_run_with_a_noise_of_ones_own_goes_on(tmp_path):
    from stable_baselines3.common.noise import NormalActionNoise

    settings = {"action_noise": NormalActionNoise(np.zeros(1), 0.3 * np.ones(1))}
    for name in "ab":
        (tmp_path / name).mkdir()
    whole = search_with_agent(toy(), "ddpg", 6, 0, settings=settings, folder=tmp_path / "a")
    search_with_agent(toy(), "ddpg", 3, 0, settings=settings, folder=tmp_path / "b")
    both = search_with_agent(
        toy(), "ddpg", 6, 0, settings=settings, folder=tmp_path / "b", resume=True
    )
    assert len(both) == len(whole)


def test_a_run_that_could_not_go_on_exactly_is_not_gone_on_with(tmp_path):
    settings = {"use_sde": True}
    search_with_agent(toy(), "sac", 2, 0, settings=settings, folder=tmp_path)
    with pytest.raises(InputError, match="a run with use_sde cannot go on where it was"):
        search_with_agent(toy(), "sac", 4, 0, settings=settings, folder=tmp_path, resume=True)


@pytest.mark.parametrize("name", OFF_POLICY)
def test_an_off_policy_agent_learns_from_the_final_reward_at_every_step(name):
    agent = make_agent(name, toy(name), 0, 1)
    agent.learn(2 * STEPS)
    data = agent.replay_buffer._get_samples(np.arange(2 * STEPS))
    finals = agent.replay_buffer.rewards.reshape(-1)[[STEPS - 1, 2 * STEPS - 1]]
    assert data.rewards.reshape(2, STEPS) == pytest.approx(np.repeat(finals[:, None], STEPS, 1))
    assert (agent.gamma, agent.learning_starts) == (1.0, STEPS)
    assert agent._n_updates == STEPS  # none in the warm-up, then one for each step


@pytest.mark.parametrize("name", [name for name in OFF_POLICY if name != "haq-ddpg"])
def test_the_memory_of_episodes_equals_n_step_returns_to_the_bit(name):
    episodes, kept = 9, 4  # the memory is written over twice
    agents = []
    for memory in ({}, {"n_steps": STEPS}):  # one after the other: SB3 draws from global generators
        agents.append(make_agent(name, toy(name), 0, 2, buffer_size=kept * STEPS, **memory))
        agents[-1].learn(episodes * STEPS)
    own, theirs = agents
    memories = [type(agent.replay_buffer).__name__ for agent in agents]
    assert memories == ["EpisodeMemory", "NStepReplayBuffer"]
    assert own._n_updates == (episodes - 2) * STEPS
    for key, value in own.policy.state_dict().items():
        assert torch.equal(value, theirs.policy.state_dict()[key]), key


@pytest.mark.parametrize("name", ON_POLICY)
def test_an_on_policy_agent_learns_from_whole_episodes_and_from_the_first_on(name):
    agent = make_agent(name, toy(name), 0, 20)
    before = agent.policy.state_dict()["action_net.weight"].clone()
    rollout = ALGORITHMS[name].rollout
    agent.learn(rollout * STEPS)
    assert agent.num_timesteps == rollout * STEPS
    assert (agent.policy.state_dict()["action_net.weight"] != before).any()
    returns = agent.rollout_buffer.returns.reshape(rollout, STEPS)
    assert np.ptp(returns, axis=1) == pytest.approx(0, abs=1e-5)  # the final reward, everywhere


def test_settings_can_be_chosen_and_do_not_leak_into_the_next_agent():
    agent = make_agent("sac", toy(), 0, 1, learning_rate=0.5, policy_kwargs={"net_arch": [7]})
    assert (agent.learning_rate, agent.policy.net_arch) == (0.5, [7])
    assert make_agent("sac", toy(), 0, 1).policy.net_arch == [128, 128]
    make_agent("ddpg", toy(), 0, 1)  # SB3 writes n_critics into the arguments it is given
    assert make_agent("td3", toy(), 0, 1).critic.n_critics == 2
    masked = make_agent("maskable-ppo", toy("maskable-ppo"), 0, 1, n_steps=2 * STEPS)
    assert masked.n_steps == 2 * STEPS


# -- crashes -------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process ends here."""


def same_state(left: Path, right: Path) -> bool:
    """Compare two agents bit for bit."""

    def flat(part, at=()):
        if isinstance(part, dict):
            return [item for key in part for item in flat(part[key], (*at, key))]
        if isinstance(part, list | tuple):
            return [item for n, each in enumerate(part) for item in flat(each, (*at, n))]
        return [(at, part.numpy().tobytes() if torch.is_tensor(part) else part)]

    states = [torch.load(folder / "agent.pt", weights_only=True) for folder in (left, right)]
    return flat(states[0]) == flat(states[1])


VARIANTS = [(name, {}) for name in NAMES] + [
    ("haq-ddpg", {"switches": HaqSwitches.released()}),
    ("haq-ddpg", {"switches": HaqSwitches(stored_actions="executed", reward="terminal")}),
]


@pytest.mark.parametrize(
    ("name", "settings"), VARIANTS, ids=[*NAMES, "haq-ddpg-released", "haq-ddpg-executed"]
)
def test_a_run_killed_again_and_again_ends_as_an_unbroken_one(name, settings, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    episodes, rest = 11, {"warmup": 3, "settings": settings}
    history = search_with_agent(toy(name), name, episodes, 0, folder=whole, **rest)
    for rows in (3, 6, 8, 11):

        def stop(history, rows=rows):
            if len(history) == rows:
                raise Crash

        with pytest.raises(Crash):
            search_with_agent(
                toy(name), name, episodes, 0, folder=broken, resume=True, progress=stop, **rest
            )
        kept = torch.load(broken / "agent.pt", weights_only=True)["counters"]["_episode_num"]
        assert rows - 1 - ALGORITHMS[name].rollout <= kept < rows - 1
    resumed = search_with_agent(toy(name), name, episodes, 0, folder=broken, resume=True, **rest)
    assert seen(resumed) == seen(history)
    assert same_state(whole, broken)


@pytest.mark.parametrize("name", ["ppo", "maskable-ppo"])
def test_an_episode_of_one_decision_is_learned_from(name):
    layers = LayerTable("one", (LAYERS[0], LAYERS[1], LAYERS[3]), (3, 8, 8))
    settings = {"quantizer": "kmeans", "hardware": "size", "budget": 0.9}
    task = make_task(torch.nn.Identity(), layers=layers, evaluator=Additive(), **settings)
    assert len(task.space.steps) == 1
    env = gym.wrappers.OrderEnforcing(QuantizationEnv(task, actions=ALGORITHMS[name].actions))
    assert len(search_with_agent(env, name, 13, 0)) == 14


@pytest.mark.parametrize("name", ["ppo", "maskable-ppo", "dqn", "haq-ddpg"])
def test_resuming_a_finished_run_measures_nothing(name, tmp_path):
    history = search_with_agent(toy(name), name, 6, 0, folder=tmp_path, warmup=2)
    env = toy(name)
    again = search_with_agent(env, name, 6, 0, folder=tmp_path, warmup=2, resume=True)
    assert list(again) == list(history)
    assert env.task.evaluator.evaluations == 0


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("td3", "a2c")])
def test_the_state_of_an_agent_with_other_settings_is_refused(name, tmp_path):
    search_with_agent(toy(name), name, 2, 0, folder=tmp_path, warmup=1)
    rest = {"folder": tmp_path, "resume": True, "warmup": 1}
    changed = {"policy_kwargs": {"net_arch": [5, 5]}}
    if name == "haq-ddpg":
        changed = {"switches": HaqSwitches(hidden=(5, 5))}
    other = "maskable-ppo" if name == "dqn" else "dqn" if name in DISCRETE else "a2c"
    other = "sac" if other == "a2c" and name in ON_POLICY else other
    for algorithm, settings in ((name, changed), (other, {})):
        env = toy(algorithm)
        with pytest.raises(InputError, match="is not of an agent with these settings"):
            search_with_agent(env, algorithm, 2, 0, settings=settings, **rest)
        assert env.task.evaluator.evaluations == 0


def test_an_agent_is_prepared_once_before_it_acts_and_never_on_resume(tmp_path):
    prepared = []

    def stop(history):
        if len(history) == 3:
            raise Crash

    def prepare(agent):
        prepared.append(agent.num_timesteps)
        with torch.no_grad():
            for each in agent.actor.parameters():
                each.zero_()

    rest = {"folder": tmp_path, "warmup": 1, "prepare": prepare, "resume": True}
    with pytest.raises(Crash):
        search_with_agent(toy(), "ddpg", 4, 0, progress=stop, **rest)
    history = search_with_agent(toy(), "ddpg", 4, 0, **rest)
    assert prepared == [0]
    assert seen(history) != seen(search_with_agent(toy(), "ddpg", 4, 0, warmup=1))


# -- HAQ's agent: exploration --------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "sigma"), [(0.0, 1.0), (1.0, 1.0), (-0.8, 0.3), (0.99, 0.01)])
def test_exploration_is_a_truncated_normal_without_mass_at_the_ends(mean, sigma):
    rng = np.random.default_rng(0)
    drawn = truncated_normal(np.full(20_000, mean, np.float32), sigma, rng)
    assert np.abs(drawn).max() <= 1
    assert (np.abs(drawn) == 1).mean() < 1e-3  # clipping would put up to half of them there
    expected = stats.truncnorm((-1 - mean) / sigma, (1 - mean) / sigma, mean, sigma)
    assert stats.kstest(drawn, expected.cdf).pvalue > 1e-3


def test_exploration_fades_by_the_episode_from_twice_a_half():
    agent = agent_of(warmup=20)
    assert agent.sigma(20) == 1.0  # 0.5 on [0, 1]
    assert agent.sigma(21) == pytest.approx(0.99)
    assert agent.sigma(120) == pytest.approx(0.99**100)


def test_the_agent_explores_around_its_actor_after_the_warm_up(monkeypatch):
    asked = []

    def drawing(mean, sigma, rng):
        asked.append((float(mean[0, 0]), sigma))
        return mean

    monkeypatch.setattr("haq_env.agents.haq_ddpg.truncated_normal", drawing)
    agent = agent_of(warmup=2)
    agent.learn(4 * STEPS)
    assert [sigma for _, sigma in asked] == pytest.approx([1.0] * STEPS + [0.99] * STEPS)
    stored = agent.replay_buffer.actions[2 * STEPS : 4 * STEPS, 0, 0]
    assert stored == pytest.approx([mean for mean, _ in asked])


def test_warm_up_actions_are_uniform():
    agent = agent_of(warmup=100)
    agent.learn(100 * STEPS)
    drawn = agent.replay_buffer.actions[: 100 * STEPS].reshape(-1)
    assert stats.kstest(drawn, stats.uniform(-1, 2).cdf).pvalue > 1e-3


@pytest.mark.parametrize(("inclusive", "episode"), [(False, 21), (True, 22)])
def test_the_first_update_follows_the_first_episode_that_is_not_random(inclusive, episode):
    agent = agent_of(warmup=20, inclusive_warmup=inclusive)
    agent.learn((episode - 1) * STEPS)
    assert agent._n_updates == 0
    agent.learn(STEPS, reset_num_timesteps=False)
    assert agent._n_updates == STEPS
    assert agent.sigma(episode - 1) == pytest.approx(0.99 if inclusive else 1.0)


# -- HAQ's agent: reward -------------------------------------------------------------------------


def buffer_of(slots=10, **switches) -> HaqReplayBuffer:
    env = toy()
    return HaqReplayBuffer(
        slots,
        env.observation_space,
        env.action_space,
        steps=tuple(env.task.space.steps),
        bits=env.task.space.bits,
        switches=HaqSwitches(**switches),
    )


def play(buffer: HaqReplayBuffer, reward: float, policy=((8, 8), (2, 3), (4, 8), (8, 8))) -> None:
    """Store an episode whose actions are its steps' numbers divided by ten."""
    for step in range(STEPS):
        done = step == STEPS - 1
        observation = np.full((1, 10), 0.1 * step, dtype=np.float32)
        buffer.add(
            observation,
            observation + 0.1,
            np.full((1, 1), 0.1 * step, dtype=np.float32),
            np.array([reward if done else 0.0]),
            np.array([done]),
            [{"policy": policy} if done else {}],
        )


def test_the_last_reward_is_on_every_step_also_where_the_ring_wraps():
    buffer = buffer_of(slots=10)  # the third episode takes the slots 8, 9, 0 and 1
    for reward in (-1.0, -2.0, -3.0):
        play(buffer, reward)
    assert buffer.rewards[:, 0].tolist() == [-3, -3, -1, -1, -2, -2, -2, -2, -3, -3]
    assert (buffer.pos, buffer.full) == (2, True)


def test_a_terminal_reward_stays_where_it_is():
    buffer = buffer_of(reward="terminal")
    play(buffer, -2.0)
    assert buffer.rewards[:STEPS, 0].tolist() == [0, 0, 0, -2]


def test_the_baseline_is_the_moving_average_of_the_final_rewards():
    buffer = buffer_of(slots=100)
    values = []
    for reward in (-4.0, -2.0, 0.0):
        play(buffer, reward)
        values.append(buffer.baseline)
    assert values == [-4.0, -3.0, -1.5]  # the newest counts one half
    batch = buffer.sample(12)
    assert buffer.baseline == -1.5  # does not move with the updates
    assert sorted(batch.rewards.reshape(-1).tolist()) == [-2.5] * 4 + [-0.5] * 4 + [1.5] * 4


def test_the_released_baseline_moves_at_every_update_with_the_mini_batch():
    buffer = buffer_of(slots=100, baseline="batch")
    play(buffer, -4.0)
    assert buffer.baseline is None
    assert buffer.sample(4).rewards.reshape(-1).tolist() == [0.0] * 4  # the first mean itself
    assert buffer.baseline == -4.0
    play(buffer, 0.0)
    assert sorted(buffer.sample(8).rewards.reshape(-1).tolist()) == [-1.0] * 4 + [3.0] * 4
    assert buffer.baseline == -3.0  # half way from -4 to the mean -2
    buffer.sample(8)
    assert buffer.baseline == -2.5


def test_another_rate_or_no_baseline_can_be_chosen():
    slow, none = buffer_of(baseline_rate=0.25), buffer_of(baseline="none")
    for reward in (-4.0, 0.0):
        play(slow, reward)
        play(none, reward)
    assert slow.baseline == -3.0
    assert none.baseline is None
    assert set(none.sample(8).rewards.reshape(-1).tolist()) == {-4.0, 0.0}


def test_a_mini_batch_has_no_step_twice_unless_told_so():
    numbers = np.arange(64, dtype=np.float32)
    for replacement, distinct in ((False, True), (True, False)):
        buffer = buffer_of(slots=64, replacement=replacement)
        buffer.observations[:, 0, 0] = numbers
        buffer.full = True
        drawn = buffer.sample(64).observations[:, 0].numpy()
        assert (len(set(drawn.tolist())) == 64) == distinct
    few = buffer_of(slots=64)
    play(few, -1.0)
    assert len(few.sample(64).rewards) == 64  # fewer steps than the batch: some come twice


def test_executed_actions_are_those_of_the_policy_that_was_measured():
    buffer = buffer_of(slots=6, stored_actions="executed")
    for _ in range(2):  # the second episode wraps around
        play(buffer, -1.0)
    slots = [4, 5, 0, 1]
    bits = [action_to_bits(float(action), 2, 8) for action in buffer.actions[slots, 0, 0]]
    assert bits == [2, 3, 4, 8]
    assert buffer.actions[4, 0, 0] == pytest.approx(-6 / 7)  # the middle of the lowest bin
    assert buffer.observations[slots, 0, PREVIOUS] == pytest.approx([0, 2 / 8, 3 / 8, 4 / 8])
    assert buffer.next_observations[slots, 0, PREVIOUS] == pytest.approx(
        [2 / 8, 3 / 8, 4 / 8, 8 / 8]
    )
    requested = buffer_of(slots=6)
    play(requested, -1.0)
    assert requested.actions[:4, 0, 0] == pytest.approx([0.0, 0.1, 0.2, 0.3])


# -- HAQ's agent: networks and updates -----------------------------------------------------------


def test_the_agent_is_haqs():
    agent = make_agent("haq-ddpg", toy(), 0, 20)
    assert agent.switches == HaqSwitches()
    assert (agent.gamma, agent.tau, agent.batch_size) == (1.0, 0.01, 64)
    assert agent.replay_buffer.buffer_size == 128 * STEPS
    assert [layer.out_features for layer in agent.actor.mu if hasattr(layer, "out_features")] == [
        300,
        300,
        1,
    ]
    assert agent.critic.n_critics == 1


def test_actor_and_critic_learn_at_their_own_rates():
    agent = agent_of(warmup=1)
    agent.learn(2 * STEPS)
    for network, rate in ((agent.actor, 1e-4), (agent.critic, 1e-3)):
        assert [group["lr"] for group in network.optimizer.param_groups] == [rate]
    # the first step of Adam is as long as its rate, wherever there is a gradient
    agent = agent_of(warmup=1)
    before = [
        [each.detach().clone() for each in net.parameters()] for net in (agent.actor, agent.critic)
    ]
    agent.learn(STEPS)
    agent.train(1, 64)
    longest = [
        max(
            float((new.detach() - old).abs().max())
            for new, old in zip(net.parameters(), olds, strict=True)
        )
        for net, olds in zip((agent.actor, agent.critic), before, strict=True)
    ]
    assert longest == pytest.approx([1e-4, 1e-3], rel=0.01)


def test_half_as_many_episodes_are_remembered_where_layers_are_counted():
    assert agent_of(memory="layer").replay_buffer.buffer_size == 128 * STEPS // 2
    weights_only = toy(quantizer="kmeans", hardware="size", metric="size", budget=0.8)
    assert agent_of(weights_only, memory="layer").replay_buffer.buffer_size == 128 * 2


# -- HAQ's agent: what it is shown ---------------------------------------------------------------


def shown(switches: HaqSwitches, actions=(0.9, -0.9, 0.0, 0.5)) -> np.ndarray:
    """Numbers 8 and 9 of all observations of two episodes, [2, 5, 2]."""
    view = HaqView(toy(), switches)
    episodes = []
    for _ in range(2):
        observations = [view.reset()[0]]
        for action in actions:
            observations.append(view.step(np.array([action], dtype=np.float32))[0])
        episodes.append(np.array(observations)[:, [FLAG, PREVIOUS]])
    return np.array(episodes)


def test_without_switches_the_agent_sees_the_environment_as_it_is():
    plain = shown(HaqSwitches())
    assert (plain[0] == plain[1]).all()
    assert plain[0, :STEPS, 0].tolist() == [0, 1, 0, 1]
    assert plain[0, :STEPS, 1].tolist() == [1, 8 / 8, 2 / 8, 5 / 8]


def test_the_flag_can_tell_the_last_decision_as_in_the_released_code():
    flags = shown(HaqSwitches(flag_of_last_decision=True))
    assert flags[0, :STEPS, 0].tolist() == [0, 0, 1, 0]  # right at the first step only
    assert (flags[..., 1] == shown(HaqSwitches())[..., 1]).all()


def test_the_first_observation_can_be_stale_as_in_the_released_code():
    plain, stale = shown(HaqSwitches()), shown(HaqSwitches(stale_start=True))
    assert (stale[0] == plain[0]).all()
    assert stale[1, 0].tolist() == plain[0, 1].tolist()  # as at this layer's activations
    assert (stale[1, 1:] == plain[1, 1:]).all()


# -- HAQ's agent: switches -----------------------------------------------------------------------


def test_every_switch_is_documented_and_the_released_code_differs_where_it_says():
    for each in dataclasses.fields(HaqSwitches):
        assert f"        {each.name}: " in HaqSwitches.__doc__
    assert HaqSwitches().changed() == {}
    assert HaqSwitches.released().changed() == {
        "inclusive_warmup": True,
        "baseline": "batch",
        "memory": "layer",
        "flag_of_last_decision": True,
        "stale_start": True,
    }


def test_the_command_knows_and_lists_every_method_one_of_ones_own_too(monkeypatch, capsys):
    monkeypatch.setitem(SEARCH._entries, "mine", "haq_env.search.simple:random")
    assert {*NAMES, *SEARCH} < set(methods())
    for name in methods():
        Search(algo=name).check()
    assert Search(algo="mine").is_baseline
    with pytest.raises(InputError, match=r"unknown --algo 'evolutoin'\. Did you mean 'evolution'"):
        Search(algo="evolutoin").check()
    with pytest.raises(SystemExit):
        tyro.cli(Search, args=["--help"])
    listed = "".join(capsys.readouterr().out.replace("│", "").split())
    assert f"{{{','.join(methods())}}}" in listed


def test_the_command_writes_down_which_haq_it_follows():
    paper, released = (Search(algo="haq-ddpg", haq=h) for h in ("paper", "released"))
    assert (paper.record()["haq"], released.record()["haq"]) == ("paper", "released")
    assert paper.agent_settings() == {"switches": HaqSwitches()}
    assert released.agent_settings() == {"switches": HaqSwitches.released()}
    assert "haq" not in Search(algo="sac").record()
    assert Search(algo="sac").agent_settings() == {}


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"baseline": "mean"}, "baseline must be one of reward, batch, none, not 'mean'"),
        ({"reward": "all"}, "reward must be one of shared, terminal"),
        ({"baseline_rate": 0.0}, r"baseline_rate must lie in \(0, 1\], not 0.0"),
        ({"hidden": (300,)}, "hidden must be two sizes"),
    ],
)
def test_a_switch_that_means_nothing_is_refused(switches, message):
    with pytest.raises(InputError, match=message):
        HaqSwitches(**switches)


def test_the_baseline_and_the_stale_start_travel_with_the_agent(tmp_path):
    settings = {"baseline": "batch", "stale_start": True}
    agent = agent_of(**settings)
    agent.learn(4 * STEPS)
    save_agent(agent, tmp_path / "agent.pt")
    fresh = agent_of(seed=5, **settings)
    assert load_agent(fresh, tmp_path / "agent.pt") == 4
    assert fresh.carried() == agent.carried()
    assert None not in fresh.carried().values()
