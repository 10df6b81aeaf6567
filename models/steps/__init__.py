"""Step-time surrogates: physics first, and what data add to it."""
