"""What is known of a token: its log-probability, exact entropy, advantage and covariance; and the exact softmax policy.

`log_probs` (in chunks), `covariance` (Eq 8, Eq 10), `advantages` (of groups), `tokens` (an update's, and masks made of
them), `bandit` (Lemma 1, Theorems 1 and 2). torch only: no model and no file may come in here.
"""
