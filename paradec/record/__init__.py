"""What is recorded from decodes: texts with hidden states, and the calls of a canvas."""
