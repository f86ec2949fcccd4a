"""The only room that touches files and the network: weights, tokenizers, checkpoints and result writers."""
