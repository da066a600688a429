"""What happens: the scheduler, KV blocks, prefix cache and router, played in virtual time."""
