"""What a user waits for, on the CPU: input, training steps, proposals; before, after, and what bounds it."""
