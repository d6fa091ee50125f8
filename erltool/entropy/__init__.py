"""What is known of a token (log-probability, exact entropy, advantage, covariance, push), and the exact softmax policy.

`log_probs` works in chunks; `covariance` has Eq 8 and Eq 10; `push` predicts what a token's own gradient does to the
entropy; `advantages` compares responses of a group; `tokens` holds an update and makes masks; `bandit` has Lemma 1 and
Theorems 1 and 2. This room needs torch only, no model and no file.
"""
