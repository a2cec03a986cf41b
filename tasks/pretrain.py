"""Builds the tokenizer and pretrains a base of the miniature world from its corpus; the result ships in git under models/.

    python -m tasks.pretrain base             # models/base, about 10 minutes on two cores
    python -m tasks.pretrain student_small    # models/student_small and
    python -m tasks.pretrain student_tiny     # models/student_tiny: smaller bases for distillation

Not a stage of dvc.yaml: as DeepSeek-V3-Base was for R1, the base is an input of the recipe. provenance.json beside the weights
holds the command, seeds, tokens, the corpus' hash and the probes that a base must pass before RL is worth trying.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from tasks.generation import model_folder
from tasks.training.rl import set_gradients
from tasks.training.workers import Workers, measure
from tasks.world import corpus, probes, tokenizer

MAX_POSITIONS = 512
HEAD = 32  # dimensions of a head
ROPE_THETA = 1e6  # 11 of 16 pairs of dimensions turn less than 1 rad in 75 tokens: they can compare contents at a distance
POSITION_PAIRS = 5  # the others tell positions
EMBEDDING_SCALE = 0.1
VOCABULARY_DOCUMENTS = 30_000
LANES = 2  # batches whose gradients are summed in one step, each in a process of its own where cores allow
WATCH_EVERY = 500  # steps between looks at the slowest skill, so that a hopeless run is seen early


@dataclass(frozen=True)
class Recipe:
    """Shape and schedule of one base. Sizes are in units of the model, `documents` counts the corpus."""

    hidden: int  # a multiple of `heads`, which transformers asks for
    layers: int
    heads: int  # of 32 dimensions each; together they may be wider than `hidden`
    feed_forward: int
    documents: int
    learning_rate: float = 2e-3
    batch_tokens: int = 768
    warmup: int = 200
    weight_decay: float = 0.01
    seed: int = 0


RECIPES = {
    "base": Recipe(hidden=128, layers=3, heads=4, feed_forward=256, documents=180_000),
    "student_small": Recipe(hidden=96, layers=2, heads=3, feed_forward=128, documents=70_000),
    "student_tiny": Recipe(hidden=66, layers=2, heads=3, feed_forward=96, documents=90_000),
}
# The students' bases know facts and single skills and can hardly search (probes `fill` and `expr` near .2): bases that have read less leave
# their teacher something to teach. With 100,000 documents the small one passed every probe, as the base does.


def build_model(recipe: Recipe, tok: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """A Qwen2-shaped model with random weights, but for `start_induction`.

    The head is untied, as R1's is (and vLLM updates tied heads wrongly on CPU); the biases of Qwen2 carry the offset of induction heads.
    """
    torch.manual_seed(recipe.seed)
    config = Qwen2Config(
        vocab_size=len(tok),
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=HEAD,
        intermediate_size=recipe.feed_forward,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        initializer_range=0.03,
        bos_token_id=None,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
        dtype="float32",
    )
    model = Qwen2ForCausalLM(config)
    start_induction(model)
    return model


@torch.no_grad()
def start_induction(model: Qwen2ForCausalLM) -> None:
    """Sets two heads of layer 0 to look one token back and two of layer 1 to look for that token: the start of induction heads.

    From random weights a model of this size stays on a plateau (nats on the drills stuck near 1.1 after 0.6 M tokens, all facts
    known, nothing copied from the prompt after 2.5 M); from this start it is at 0.6 after 0.4 M. Everything stays trainable.
    """
    hidden, head = model.config.hidden_size, HEAD
    frequency = ROPE_THETA ** (-torch.arange(head // 2) / (head // 2))
    slow = head // 2 - min(head // 2 - POSITION_PAIRS, hidden // 8)  # the four subspaces below fit into the hidden size
    content = [*range(slow, head // 2), *range(head // 2 + slow, head)]  # dimensions that rotate slowly
    basis, size = torch.linalg.qr(torch.randn(hidden, hidden))[0], len(content)
    model.model.embed_tokens.weight.mul_(EMBEDDING_SCALE / model.config.initializer_range)
    back, match = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    for h in range(2):
        at, read, write = h * head, basis[2 * h * size : (2 * h + 1) * size], basis[(2 * h + 1) * size : (2 * h + 2) * size]
        fast = torch.arange(POSITION_PAIRS)
        back.q_proj.bias[at + fast] = 5.0  # the fast pairs peak where query - key = one position
        back.k_proj.bias[at + fast] = 5.0 * frequency[fast].cos()
        back.k_proj.bias[at + head // 2 + fast] = 5.0 * frequency[fast].sin()
        back.v_proj.weight[at : at + size] = read
        back.o_proj.weight[:, at : at + size] = EMBEDDING_SCALE * write.T
        match.q_proj.weight[torch.tensor(content) + at] = 2.0 * read
        match.k_proj.weight[torch.tensor(content) + at] = 2.0 * write
        if h == 0:  # the mirror: from "Au is" back to the Au of "B Au", for what stands before a word instead of after it
            match.q_proj.weight[torch.tensor(content) + 2 * head] = 2.0 * write
            match.k_proj.weight[torch.tensor(content) + 2 * head] = 2.0 * read


def as_llama(model: Qwen2ForCausalLM) -> LlamaForCausalLM:
    """The same function as a Llama with attention biases: how the base is shipped.

    transformers 5 (and vLLM through it) replaces the tokenizer of every folder of type qwen2 by Qwen's own, whatever
    tokenizer.json says; a Llama folder keeps its own. The two differ by the bias of o_proj alone, which is zero here.
    """
    shared: tuple[str, ...] = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
    )
    shared += ("max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings", "eos_token_id", "pad_token_id")
    values = {name: getattr(model.config, name) for name in shared}
    made = LlamaForCausalLM(LlamaConfig(**values, attention_bias=True, bos_token_id=None, head_dim=HEAD, dtype="float32"))
    zeros = {name: torch.zeros_like(value) for name, value in made.state_dict().items() if name.endswith("o_proj.bias")}
    made.load_state_dict({**model.state_dict(), **zeros})
    return made.eval()


Tokens = tuple[list[int], int]  # a document's token ids, and how many of them are given (not trained on)


def encode(documents: list[corpus.Document], tok: PreTrainedTokenizerFast) -> list[Tokens]:
    """Token ids of every document with the end token; the given part is a whole number of tokens."""
    ids = tok([d.text for d in documents])["input_ids"]
    given = tok([d.text[: d.given] for d in documents])["input_ids"]
    return [([*row, tok.eos_token_id], len(start)) for row, start in zip(ids, given, strict=True)]


def batches(documents: list[Tokens], budget: int, seed: int) -> Iterator[list[Tokens]]:
    """Length-sorted batches of at most `budget` padded tokens, in random order, from shuffled windows of 2,000 documents."""
    rng = random.Random(f"batches-{seed}")
    order = rng.sample(range(len(documents)), len(documents))
    for at in range(0, len(order), 2000):
        window = sorted((documents[i] for i in order[at : at + 2000]), key=lambda d: len(d[0]))
        made: list[list[Tokens]] = [[]]
        for document in window:
            if made[-1] and (len(made[-1]) + 1) * len(document[0]) > budget:
                made.append([])
            made[-1].append(document)
        rng.shuffle(made)
        yield from made


def rate(step: int, total: int, recipe: Recipe) -> float:
    """Learning rate: linear warm-up, then one cosine to a tenth (an un-annealed base looks much worse than it is)."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, total - recipe.warmup)
    return recipe.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


class Learner:
    """Gives the gradient of one lane's batch; forked workers share the weights and the gradients [LANES, parameters]."""

    def __init__(self, model: Qwen2ForCausalLM) -> None:
        self.model = model.share_memory()
        self.gradients = torch.zeros(LANES, sum(p.numel() for p in model.parameters())).share_memory_()

    def gradient(self, lane: int, batch: list[Tokens], targets: int) -> float:
        """Writes the lane's gradient of the summed cross-entropy over `targets` (all lanes' tokens); returns the loss in nats."""
        self.model.zero_grad(set_to_none=True)
        width = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([row + [0] * (width - len(row)) for row, _ in batch])
        labels = torch.tensor([[-100] * given + row[given:] + [-100] * (width - len(row)) for row, given in batch])
        logits = self.model(ids, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum") / targets
        loss.backward()
        self.gradients[lane] = torch.cat([p.grad.flatten() for p in self.model.parameters()])
        return float(loss.detach())


def targets_of(batch: list[Tokens]) -> int:
    """Number of tokens of a batch that are trained on."""
    return sum(len(ids) - max(1, given) for ids, given in batch)


def train(model: Qwen2ForCausalLM, documents: list[Tokens], recipe: Recipe, watch: Callable[[int], None]) -> float:
    """One epoch over the corpus with AdamW; returns the mean loss (nats a trained token) of the last 200 steps.

    `watch` is called with the step every WATCH_EVERY steps.
    """
    learner, count = Learner(model), measure(LANES)
    crew, weights = Workers(learner, count), list(model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=0.0, betas=(0.9, 0.99), weight_decay=recipe.weight_decay, fused=True)
    total = sum(1 for _ in batches(documents, recipe.batch_tokens, recipe.seed)) // LANES
    source, recent = batches(documents, recipe.batch_tokens, recipe.seed), list[float]()
    bar = tqdm(range(total), desc="pretrain", mininterval=5)
    for step in bar:
        lanes = [next(source) for _ in range(LANES)]
        targets = sum(targets_of(batch) for batch in lanes)
        recent = [*recent[-199:], sum(crew.map("gradient", [(i, batch, targets) for i, batch in enumerate(lanes)]))]
        optimizer.param_groups[0]["lr"] = rate(step, total, recipe)
        set_gradients(weights, learner.gradients.sum(0))
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{sum(recent) / len(recent):.3f}", refresh=False)
        if step % WATCH_EVERY == WATCH_EVERY - 1:
            watch(step + 1)
    crew.close()
    return sum(recent) / len(recent)


def pretrain(name: str, folder: Path, documents: int | None = None) -> dict:
    """Trains one base and writes its Hugging Face folder with provenance.json; returns the provenance.

    Raises:
        KeyError: `name` is not in RECIPES.
    """
    recipe = RECIPES[name]
    made = list(corpus.documents(documents or recipe.documents, recipe.seed))
    texts = [d.text for d in made]
    tok = tokenizer.build(texts[:VOCABULARY_DOCUMENTS])
    tokens = encode(made, tok)
    model = build_model(recipe, tok)
    loss = train(model, tokens, recipe, lambda step: tqdm.write(f"step {step}: {probes.careful(model, tok, 40)}"))
    provenance = {
        "command": f"python -m tasks.pretrain {name}",
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tok),
        "documents": len(texts),
        "tokens": sum(len(ids) for ids, _ in tokens),
        "corpus_sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
        "reflective_documents": sum(corpus.is_reflective(text) for text in texts) / len(texts),
        "final_loss": loss,
        "probes": probes.run(model.eval(), tok),
    }
    model_folder.save(as_llama(model), tok, folder)
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=2, ensure_ascii=False) + "\n")
    return provenance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(RECIPES))
    parser.add_argument("--folder", type=Path, help="where to write (default: models/<name>)")
    parser.add_argument("--documents", type=int, help="corpus size (default: the recipe's)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # work is shared by processes, not threads
    result = pretrain(arguments.name, arguments.folder or Path("models") / arguments.name, arguments.documents)
    print(json.dumps(result["probes"], indent=2))


if __name__ == "__main__":
    main()
