"""Answers from documents that are looked up: two encoders find them, a small GPT-2 reads them. RAG.

  python -m experiments.lm.retrieval                                     # people and facts that were never trained on
  python -m experiments.lm.retrieval --marginal=token --k=8
  python -m experiments.lm.retrieval --documents=store.txt --questions=asked.txt    # also of a store of your own

First the two encoders learn to bring a question near its document (Karpukhin et al. 2020); then the encoder of
documents stays as it is, and the reader and the encoder of questions learn from the answers alone, whose likelihood is
summed over the --k documents that are found (Lewis et al. 2020). Every update has stores of its own, with values drawn
anew, so that no value can be learned by heart; the test store tells of people whom no training store has. Writes
retrieval.png, how often the right document is found beside BM25 and how many answers are right, and answers.txt. A
store by file is written in the task's own words, such as "the boat of sam hill is red stone" and "what is the vessel of
samuel hill": an unknown one is named.
"""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from experiments.lm._retrieval_report import (
  Model,
  Networks,
  log_prior,
  read_log_probability,
  read_store,
  report_answers,
)
from mlnotes.data import Feeds, NamedArrays, make_drawn_feed, make_eval_batches
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import Experiment, Mean, is_hparam, masked_mean, root_key, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.lm import (
  Retrieved,
  TextEncoder,
  contrast_documents,
  make_gpt2,
  marginalize_documents,
  recall_at,
  reciprocal_rank,
  search,
)
from mlnotes.lm.tasks import Facts, draw_facts, split_people
from mlnotes.lm.tasks.facts import ANSWER_TOKENS, DOCUMENT_TOKENS, FACT_WORDS, QUESTION_TOKENS, RELATIONS
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig, OptimizerName, make_optimizer

_TEST_SEED = 0  # of the test store: the same in every run
_AT_ONCE = 16  # test questions for each of --batch_size
_TRAIN_PEOPLE, _TEST_PEOPLE = split_people()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(OptimConfig, LoopConfig):
  """Defaults: 768 test documents, some minutes on two CPU cores."""

  UNIT: ClassVar[str] = "stores"
  fills_cores: ClassVar[bool] = False
  parts_batches: ClassVar[bool] = True

  k: int = field(4, "documents that an answer is read from")
  marginal: Literal["sequence", "token"] = field(
    "sequence", "an answer is of one of the --k documents, or each of its words may be of another (Lewis et al. 2020)"
  )
  encoder_steps: int = field(1000, "updates of both encoders, ahead of those of the reader; fewer than --steps")
  people: int = field(8, "of a training store, each with six documents")
  asked: int = field(8, "questions to a training store while the reader learns")
  test_people: int = field(128, f"of the test store, 2 to {len(_TEST_PEOPLE)}, each with six documents and questions")
  depth: int = field(2, "layers of the reader; an encoder has half of them")
  heads: int = field(4, "heads, a divisor of --width")
  width: int = field(64, "features of a word")
  documents: str = field(
    "", "file.txt or .jsonl (field text), a document on each line: a store to answer --questions from", free="report"
  )
  questions: str = field("", "file.txt or .jsonl (field text), a question to --documents on each line", free="report")
  batch_size: int = field(4, "stores per update")

  steps: int = 1500
  learning_rate: float = 1e-3
  optimizer: OptimizerName = "adam"
  schedule: ScheduleName = "warmup_cosine"
  warmup_steps: int = 50
  clip_norm: float = 1.0
  log_every: int = 100
  eval_every: int = 500

  def __post_init__(self):
    super().__post_init__()
    for name in ("k", "asked", "depth", "heads", "width", "batch_size"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(1 <= self.encoder_steps < self.steps, "encoder_steps", self.encoder_steps, f"1 to --steps={self.steps} - 1")
    for name, most in (("people", len(_TRAIN_PEOPLE)), ("test_people", len(_TEST_PEOPLE))):
      require(2 <= getattr(self, name) <= most, name, getattr(self, name), f"2 to {most}")
    least = len(RELATIONS) * min(self.people, self.test_people)
    require(self.k <= least, "k", self.k, f"{least} documents of the smaller store, or fewer")
    facts = len(RELATIONS) * self.people
    require(self.asked <= facts, "asked", self.asked, f"{facts} facts of a store, or fewer")
    require(self.width % self.heads == 0, "heads", self.heads, f"a divisor of --width={self.width}")
    if bool(self.documents) != bool(self.questions):
      given, lacking = ("documents", "questions") if self.documents else ("questions", "documents")
      raise InputError(f"--{given}={getattr(self, given)} is of no use alone: expected --{lacking} too.")


class State(NamedTuple):
  """`opt_state`: of both encoders, then of what learns from answers."""

  step: Int[Array, ""]
  key: Key[Array, ""]
  params: dict[str, chex.ArrayTree]
  opt_state: tuple[optax.OptState, optax.OptState]


def build_networks(config: Config) -> Networks:
  words, heads, width = len(FACT_WORDS), config.heads, config.width
  encoder = lambda length: TextEncoder(
    make_gpt2(words, length, -(-config.depth // 2), heads, width).clone(causal=False), name=None
  )
  room = DOCUMENT_TOKENS + QUESTION_TOKENS + ANSWER_TOKENS
  reader = make_gpt2(words, room, config.depth, heads, width)
  return Networks(encoder(QUESTION_TOKENS), encoder(DOCUMENT_TOKENS), reader)


def test_facts(config: Config) -> Facts:
  """The test store and its questions, number i of which is answered by document i."""
  key = stream_key(root_key(_TEST_SEED), "test")
  return jax.jit(lambda: draw_facts(key, jnp.asarray(_TEST_PEOPLE), config.test_people))()


def make_feeds(config: Config) -> Feeds:
  """Stores to learn from, the test questions, and as `reference` the test documents."""
  draw = lambda key, people: draw_facts(key, people, config.people)._asdict()
  test = {name: jax.device_get(value) for name, value in test_facts(config)._asdict().items()}
  some = lambda *names: make_eval_batches(
    NamedArrays({name: test[name] for name in names}), _AT_ONCE * config.batch_size
  )
  feed = make_drawn_feed(draw, jnp.asarray(_TRAIN_PEOPLE), config.batch_size, "stores")
  return Feeds(feed, some("question", "answer"), some("document"), split="test")


def make(config: Config) -> Experiment:
  networks = build_networks(config)
  own = read_store(config.documents, config.questions)
  lengths = config.encoder_steps, config.steps - config.encoder_steps
  encoder_optimizer, answer_optimizer = (make_optimizer(config, steps) for steps in lengths)

  def init(key, batch) -> State:
    facts = jax.tree.map(lambda x: x[0], Facts(**batch))
    params = networks.init(stream_key(key, "init"), facts)
    opt_state = encoder_optimizer.init(encoders(params)), answer_optimizer.init(answering(params))
    return State(jnp.zeros([], jnp.int32), key, params, opt_state)

  def learn_encoders(state: State, asked, batch):
    def objective(some):
      losses, found = jax.vmap(lambda facts: contrast(networks, some, facts))(Facts(**batch))
      return jnp.mean(losses), jnp.mean(found)

    (loss, found), grads = jax.value_and_grad(objective, has_aux=True)(encoders(state.params))
    updates, new = encoder_optimizer.update(grads, state.opt_state[0], encoders(state.params))
    params = state.params | optax.apply_updates(encoders(state.params), updates)
    metrics = {"contrast_loss": counted(loss), "answer_loss": counted(loss, 0), "recall": found}
    return params, (new, state.opt_state[1]), {**metrics, "grad_norm": optax.global_norm(grads)}

  def begin_answers(state: State) -> State:
    """At the first of its updates what learns from answers begins as the encoders end: averaged, where they are."""
    begins = state.step == config.encoder_steps
    params = state.params | eval_params(state.opt_state[0], encoders(state.params))
    new = params, (state.opt_state[0], answer_optimizer.init(answering(params)))
    choose = lambda path, a, b: b if is_hparam(path) else jnp.where(begins, a, b)
    params, opt_state = jax.tree_util.tree_map_with_path(choose, new, (state.params, state.opt_state))
    return state._replace(params=params, opt_state=opt_state)

  def learn_answers(state: State, asked, batch):
    state = begin_answers(state)
    fixed = state.params["document"]

    def objective(some):
      one = lambda asked, facts: answer_loss(config, networks, {**some, "document": fixed}, asked, facts)
      losses, found = jax.vmap(one)(asked, Facts(**batch))
      return jnp.mean(losses), jnp.mean(found)

    (loss, found), grads = jax.value_and_grad(objective, has_aux=True)(answering(state.params))
    updates, new = answer_optimizer.update(grads, state.opt_state[1], answering(state.params))
    params = state.params | optax.apply_updates(answering(state.params), updates)
    metrics = {"contrast_loss": counted(loss, 0), "answer_loss": counted(loss), "recall": found}
    return params, (state.opt_state[0], new), {**metrics, "grad_norm": optax.global_norm(grads)}

  def step(state: State, batch):
    early = state.step < config.encoder_steps
    # Drawn ahead of the choice: of seeds side by side both are computed, and no key may be used in one of them alone.
    key = stream_key(state.key, "asked", state.step)
    asked = draw_asked(key, config.asked, *batch["question"].shape[:2])
    given = state._replace(key=()), asked, batch
    params, opt_state, metrics = jax.lax.cond(early, learn_encoders, learn_answers, *given)
    return State(state.step + 1, state.key, params, opt_state), metrics

  def learned(state: State) -> dict[str, Any]:
    """What is evaluated: averaged where the optimizer averages."""
    first, second = state.opt_state
    early, late = eval_params(first, encoders(state.params)), eval_params(second, answering(state.params))
    begun = state.step > config.encoder_steps
    question = jax.tree.map(lambda a, b: jnp.where(begun, b, a), early["question"], late["question"])
    return {"question": question, "document": early["document"], "reader": late["reader"]}

  def embed(state: State, batch):
    vector = networks.embed_documents(learned(state), batch["document"])
    return {"vector": vector, "document": batch["document"], "real": batch["mask"] > 0}

  def evaluate(state: State, batch, reference) -> dict[str, Mean]:
    params = learned(state)
    query = networks.embed_questions(params, batch["question"])
    found = search(query, reference["vector"], config.k, real=reference["real"])
    documents = reference["document"][found.number]
    logs = read_log_probability(networks, params, documents, batch["question"], batch["answer"])
    real = jnp.ones_like(batch["answer"], bool)
    nats = -marginalize_documents(log_prior(found), logs, real, config.marginal) / ANSWER_TOKENS
    said = networks.answer(params, documents, batch["question"], log_prior(found), config.marginal)
    right = jnp.all(said == batch["answer"], 1).astype(jnp.float32)
    over = lambda values: masked_mean(values, batch["mask"])
    recall = lambda k: over(recall_at(found.number[:, :k], batch["index"]))
    return {"loss": over(nats), "accuracy": over(right), "recall_1": recall(1), f"recall_{config.k}": recall(config.k)}

  def model(state: State) -> Model:
    return Model(networks, learned(state), config.k, config.marginal)

  def report(state: State, directory: Path) -> dict[str, float]:
    return report_answers(model(state), test_facts(config), own, directory)

  return Experiment(init, step, evaluate, report, embed=embed, model=model)


def encoders(params: dict[str, Any]) -> dict[str, Any]:
  return {name: params[name] for name in ("question", "document")}


def answering(params: dict[str, Any]) -> dict[str, Any]:
  """What learns from answers: not the encoder of documents, whose index would have to be made anew."""
  return {name: params[name] for name in ("question", "reader")}


def counted(value: Float[Array, ""], count: int = 1) -> Mean:
  """Of an update; with a count of 0 it has none."""
  return Mean(value * count, jnp.float32(count))


def contrast(networks: Networks, params: Any, facts: Facts) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
  """(nats, whether the right document is first) of each question of a store, among all of its documents."""
  query = networks.embed_questions(params, facts.question)
  vectors = networks.embed_documents(params, facts.document)
  right = jnp.arange(len(query))
  first = reciprocal_rank(jax.lax.stop_gradient(query @ vectors.T), right) == 1
  return contrast_documents(query, vectors, right), first.astype(jnp.float32)


def draw_asked(key: Key[Array, ""], count: int, stores: int, facts: int) -> Int[Array, "B Q"]:
  """The numbers of `count` questions to each store, none twice."""
  return jax.lax.top_k(jax.random.uniform(key, (stores, facts)), count)[1]


def answer_loss(
  config: Config, networks: Networks, params: Any, asked: Int[Array, " Q"], facts: Facts
) -> tuple[Float[Array, " Q"], Float[Array, " Q"]]:
  """(nats of a token of the answer, whether the right document is among those found) of the questions `asked`."""
  query = networks.embed_questions(params, facts.question[asked])
  index = networks.embed_documents(params, facts.document)
  number = search(jax.lax.stop_gradient(query), index, config.k).number
  # The gradient is of the scores of those that are found; which these are has none.
  found = Retrieved(number, jnp.einsum("qd,qkd->qk", query, index[number]))
  answer = facts.answer[asked]
  logs = read_log_probability(networks, params, facts.document[found.number], facts.question[asked], answer)
  likelihood = marginalize_documents(log_prior(found), logs, jnp.ones_like(answer, bool), config.marginal)
  return -likelihood / ANSWER_TOKENS, recall_at(found.number, asked)


def main(config: Config) -> int:
  return train(make(config), make_feeds(config), config, best_metric="loss")


if __name__ == "__main__":
  run(main, Config)
