"""Operations with a hand-written backward pass or a faster forward pass."""
