"""Training data: sources of rows, and the chain that shuffles, slices, packs and batches them."""
