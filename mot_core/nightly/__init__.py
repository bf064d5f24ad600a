"""The pure parts of `mot nightly`: what a night is, in which order cells come, what changed, and the digest."""
