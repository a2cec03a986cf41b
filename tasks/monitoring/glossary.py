"""What the report says in words: every metric in plain language."""

from __future__ import annotations

# Name as shown -> definition. Order is the order of the report.
METRICS: dict[str, str] = {
    "pass@1": (
        "The chance that one sample solves a problem: the share of correct samples of each problem, averaged over "
        "problems. Samples are drawn at temperature 0.6 and top-p 0.95, as in the paper; greedy decoding is not used."
    ),
    "shown, not shown": (
        "Whether this run meets the rule that stands beside the claim. The rules are thresholds, set for runs of the miniature; one run, "
        "one seed. “Not shown” is not “refuted”: a model that solves nearly everything leaves a vote, or more training, nothing to gain."
    ),
    "95 % interval": (
        "A bootstrap over problems: had other problems been drawn from the same world, the mean would have varied "
        "about this much. It says nothing about other random seeds of training."
    ),
    "pass@k": ("The chance that at least one of k samples solves a problem, estimated without bias from all samples of the problem."),
    "cons@k": ("Majority vote: the k answers of a problem are grouped by verified equality, and the largest group's answer counts."),
    "cons@k in training": (
        "Majority vote over the group of k samples that a rollout draws of each training problem, at temperature 1; once a rollout."
    ),
    "accuracy reward": "1 if a rule (never a model) verifies the final answer, else 0.",
    "format reward": ("Paid if the completion is one thought in think tags followed by one answer in answer tags, and nothing else."),
    "accuracy in training": (
        "Share of correct samples among the rollouts of a step, sampled at temperature 1 on training problems; lower "
        "than pass@1 of the same weights, and noisier."
    ),
    "validation pass@1": ("pass@1 on problems that are neither trained on nor used for the final figures; measured now and then."),
    "response length": "Mean number of sampled tokens of a completion, tags and end token included.",
    "“wait” share": "Share of samples that say “wait” (or 等等, 等一下, 且慢, ...) at least once.",
    "reflective words": (
        "The paper's ten words (wait, mistake, however, but, retry, error, verify, wrong, evaluate, check), whole "
        "words only, with their Chinese counterparts; occurrences per 1,000 samples."
    ),
    "take-off": (
        "The step from which a series rises for good: the best fit of “flat, then rising, then flat”, accepted only "
        "if the rise is at least five points and noise with the same autocorrelation shows one as clear in at most 1 "
        "of 100 cases. The step itself is an estimate: on a slow or noisy rise it can be several steps off."
    ),
    "preferred to Dev3": (
        "Sample i of a model and sample i of Dev3 answer the same general prompt; a judge that no reward model was trained on compares the "
        "final answers, in both orders. The share of pairs that the model wins; a tie is no win, or half of one where it says so. "
        "The base's own share stands beside it: what training adds is the difference."
    ),
    "unsafe responses": "Share of responses to harmful prompts that help with the harm anywhere, the thought included.",
    "refusals": (
        "Share of final answers to harmless general prompts that decline to help. Prompts of the family “how” are worded like harmful "
        "ones; the others hardly invite a refusal, so the share over all says little about over-refusal."
    ),
    "thought on trivial prompts": (
        "Words, numbers and signs between the think tags, on greetings, questions about the model itself, and sums of one step; the paper "
        "trains R1 to answer such prompts without much thought."
    ),
    "reflection forbidden": (
        "The same weights, decoded with every token sequence that spells a reflective word forbidden. Comparing "
        "samples with and without “wait” would say nothing, because hard problems get more retries; forbidding the "
        "words is an experiment."
    ),
    "language consistency": ("Share of a thought's words that are in the language of the question, averaged over samples with words."),
    "mixed thoughts": "Share of thoughts with less than 90 % of their words in the language of the question.",
    "repetition": ("Share of completions in which a sentence of six or more words is said twice, or a phrase runs in a loop."),
    "no answer": "Share of completions without anything between answer tags.",
    "truncated": "Share of completions cut off by the length limit.",
    "reward model's score": "What a reward model gives a response, between 0 and 1; no rule can check it, so it can be exploited.",
    "AUC": "The chance that a safe response scores higher than an unsafe one; 0.5 is a coin toss.",
    "entropy": "Mean uncertainty of the policy about its next token, in nats: 0 is certainty, 0.69 a coin toss.",
    "KL": (
        "How far the policy has moved from the reference model, per token in nats (the k3 estimator); it falls back "
        "to about 0 each time the reference is replaced by the current policy."
    ),
    "clip share": (
        "Share of tokens whose probability ratio to the sampling policy left the clipping range, so that they gave no gradient."
    ),
    "informative groups": (
        "Share of prompts whose samples did not all earn the same reward. Only these teach: a group's advantages are "
        "all zero when its rewards are equal."
    ),
    "gradient norm": "Length of the gradient before it is clipped.",
    "sampler gap": (
        "Largest difference between the log-probability that the sampler and the trainer give to the same token, on the first "
        "update of a rollout. Far from 0, the sampler would be running stale or different weights; the run then stops."
    ),
    "FLOPs": (
        "Floating point operations, counted from the shapes of the model and the numbers of tokens, not measured: sampling is forward "
        "passes, training forward and backward, the reference forward alone."
    ),
    "fingerprint": "A hash of the weights. Each sample carries the fingerprint of the model that wrote it.",
}
