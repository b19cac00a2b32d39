"""What a user waits for, on the CPU: the input, training steps, proposals; before, after, and what bounds it."""
