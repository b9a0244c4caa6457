"""lm-eval runs on base and pruned model, held-out next-token prediction, and gates."""
