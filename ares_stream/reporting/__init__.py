"""Pages for people, and what fills them."""
