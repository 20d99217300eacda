"""The parts of `loralight tune`: what is searched, what Optuna proposes, and which trials are given up."""
