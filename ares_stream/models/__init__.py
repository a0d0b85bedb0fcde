"""Models on disk, verified and signed; their releases; who is told of them."""
